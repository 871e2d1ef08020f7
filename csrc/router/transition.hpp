// What one committed token does to a sequence: the rules of step-wise collaboration, written once
// for host and device. Plain data, no allocation, no exceptions.
//
// Rules (docs/architecture.md, "Semantics"):
//   - a step starts in kGlimpse (or at once with a writer, when the route is forced);
//   - white space and the think-start token at a step's start are committed without a decision;
//   - end of sequence > end of thinking > thinking budget > delimiter > step cap, in this order;
//   - a step that is decided for the large model may go on with the small one behind so many
//   tokens;
//   - budget and repetition close the thinking by force: the caller appends the closing ids.
#pragma once

#include <cstdint>

#include "glimprouter/step_boundary.hpp"
#include "glimprouter/types/host_device.hpp"
#include "glimprouter/types/step_types.hpp"

namespace glimprouter {

inline constexpr std::int32_t kMaxCycle = 8;  // steps of the longest repetition that is noticed

struct SequenceState {
  Phase phase = Phase::kGlimpse;
  std::uint8_t automaton = StepBoundary::kInitialState;
  std::uint16_t unused = 0;  // in place of padding, whose bytes would be saved as they are
  std::int32_t step_index = 0;
  std::int32_t step_tokens = 0;
  std::int32_t large_tokens = 0;  // of the running step, by the large model in kLargeStep
  std::int32_t think_tokens = 0;
  std::int32_t answer_tokens = 0;
  std::int32_t position = 0;  // generated tokens, forced ones included: the shared frontier
  std::int32_t finished_steps = 0;
  std::uint64_t step_hash = 0;
  std::uint64_t recent_steps[2 * kMaxCycle] = {};  // hashes, newest at finished_steps - 1 mod size
};

struct TransitionResult {
  EndReason end_reason = EndReason::kNone;
  std::int32_t forced_tokens = 0;  // closing ids that the caller appends now
};

GR_HOST_DEVICE inline bool wants_large(const SequenceLimits& limits, float entropy) {
  return limits.comparison == Comparison::kGreater ? entropy > limits.threshold
                                                   : entropy >= limits.threshold;
}

// Whether the sequence waits for this model's logits.
GR_HOST_DEVICE inline bool waits_for(const SequenceState& state, const SequenceLimits& limits,
                                     Model model) {
  switch (state.phase) {
    case Phase::kGlimpse:
    case Phase::kSmallStep:
      return model == Model::kSmall;
    case Phase::kLargeStep:
      return model == Model::kLarge;
    case Phase::kAnswer:
      return model == limits.answer_model;
    default:
      return false;
  }
}

// Whether the large model writes only the first tokens of the running step: not where it was given
// all steps, or this one without a decision.
GR_HOST_DEVICE inline bool hands_back(const SequenceState& state, const SequenceLimits& limits) {
  return limits.large_tokens > 0 && limits.route != RouteMode::kLarge &&
         state.step_index >= limits.first_steps_large;
}

// Tokens that the model which a sequence waits for may write, at most, before its step, the
// thinking or the answer is over for it; 0 where it waits for none.
GR_HOST_DEVICE inline std::int32_t room_of(const SequenceState& state,
                                           const SequenceLimits& limits) {
  if (state.phase == Phase::kAnswer) return limits.max_answer_tokens - state.answer_tokens;
  if (!waits_for(state, limits, Model::kSmall) && !waits_for(state, limits, Model::kLarge))
    return 0;
  const std::int32_t thinking = limits.max_think_tokens - state.think_tokens;
  const std::int32_t step = limits.max_step_tokens - state.step_tokens;
  const std::int32_t large_ahead = limits.first_steps_large - state.step_index - 1;
  if (limits.route == RouteMode::kAuto || limits.route == RouteMode::kManual) {
    if (state.phase == Phase::kLargeStep && hands_back(state, limits)) {
      const std::int32_t first = limits.large_tokens - state.large_tokens;
      const std::int32_t most = step < thinking ? step : thinking;
      return first < most ? first : most;
    }
    if (state.phase == Phase::kLargeStep) {  // the small model looks at the next step's start
      const std::int64_t steps = large_ahead > 0 ? large_ahead : 0;
      const std::int64_t written = step + steps * limits.max_step_tokens;
      return written < thinking ? static_cast<std::int32_t>(written) : thinking;
    }
    if (large_ahead > 0 && step < thinking) return step;
  }
  return thinking;
}

GR_HOST_DEVICE inline void begin_step(SequenceState& state, const SequenceLimits& limits) {
  state.step_tokens = state.large_tokens = 0;
  state.step_hash = TokenText::kEmptyHash;
  state.automaton = static_cast<std::uint8_t>(state.automaton & ~StepBoundary::kContent);
  if (limits.route == RouteMode::kSmall) {
    state.phase = Phase::kSmallStep;
  } else if (limits.route == RouteMode::kLarge || state.step_index < limits.first_steps_large) {
    state.phase = Phase::kLargeStep;
  } else {
    state.phase = Phase::kGlimpse;
  }
}

// The last L steps equal the L before, for some L; at least three steps in all.
GR_HOST_DEVICE inline bool repeats(const SequenceState& state) {
  constexpr std::int32_t kSize = 2 * kMaxCycle;
  if (state.finished_steps < 3) return false;
  for (std::int32_t length = 1; length <= kMaxCycle; ++length) {
    if (2 * length > state.finished_steps) return false;
    bool equal = true;
    for (std::int32_t i = 1; i <= length && equal; ++i) {
      equal = state.recent_steps[(state.finished_steps - i) % kSize] ==
              state.recent_steps[(state.finished_steps - i - length) % kSize];
    }
    if (equal) return true;
  }
  return false;
}

GR_HOST_DEVICE inline void begin_answer(SequenceState& state, const SequenceLimits& limits) {
  state.phase = limits.max_answer_tokens > 0 ? Phase::kAnswer : Phase::kDone;
}

GR_HOST_DEVICE inline TransitionResult close_thinking(SequenceState& state,
                                                      const SequenceLimits& limits,
                                                      EndReason reason) {
  state.position += limits.num_close_tokens;
  begin_answer(state, limits);
  return {reason, limits.num_close_tokens};
}

GR_HOST_DEVICE inline TransitionResult finish_step(SequenceState& state,
                                                   const SequenceLimits& limits, EndReason reason) {
  state.recent_steps[state.finished_steps % (2 * kMaxCycle)] = state.step_hash;
  ++state.finished_steps;
  if (limits.repetition_guard && repeats(state)) {
    return close_thinking(state, limits, EndReason::kRepetition);
  }
  ++state.step_index;
  begin_step(state, limits);
  return {reason, 0};
}

GR_HOST_DEVICE inline TransitionResult commit_answer_token(SequenceState& state,
                                                           const SequenceLimits& limits,
                                                           TokenEffect effect) {
  ++state.position;
  ++state.answer_tokens;
  if (effect.has(TokenEffect::kEndOfSequence)) {
    state.phase = Phase::kDone;
    return {EndReason::kEndOfSequence, 0};
  }
  if (state.answer_tokens >= limits.max_answer_tokens) {
    state.phase = Phase::kDone;
    return {EndReason::kAnswerBudget, 0};
  }
  return {};
}

// Where a sequence begins, behind its prompt.
GR_HOST_DEVICE inline void begin_sequence(SequenceState& state, const SequenceOptions& options) {
  const SequenceLimits& limits = options.limits;
  if (options.start.answering) return begin_answer(state, limits);
  begin_step(state, limits);
  if (options.start.in_step) {
    if (state.phase == Phase::kGlimpse) state.phase = Phase::kSmallStep;
    state.automaton = options.start.automaton;
  }
}

// Whether a token at a step's start is committed without a decision and leaves it a start.
GR_HOST_DEVICE inline bool precedes_step(TokenEffect effect) {
  return effect.has(TokenEffect::kWhitespace) || effect.has(TokenEffect::kThinkStart);
}

// Commits a token that the model of the current phase wrote. effect: of the token in
// state.automaton, and its text: from the writer's boundary tables.
GR_HOST_DEVICE inline TransitionResult commit_token(SequenceState& state,
                                                    const SequenceLimits& limits,
                                                    TokenEffect effect, TokenText text) {
  if (state.phase == Phase::kAnswer) return commit_answer_token(state, limits, effect);
  ++state.position;
  ++state.think_tokens;
  ++state.step_tokens;
  state.step_hash = text.append_to(state.step_hash);
  state.automaton = effect.next_state();
  if (effect.has(TokenEffect::kEndOfSequence)) {
    state.phase = Phase::kDone;
    return {EndReason::kEndOfSequence, 0};
  }
  if (effect.has(TokenEffect::kThinkEnd)) {
    begin_answer(state, limits);
    return {EndReason::kThinkEnd, 0};
  }
  if (state.think_tokens >= limits.max_think_tokens) {
    return close_thinking(state, limits, EndReason::kBudget);
  }
  if (effect.has(TokenEffect::kHit)) return finish_step(state, limits, EndReason::kDelimiter);
  if (state.step_tokens >= limits.max_step_tokens) {
    return finish_step(state, limits, EndReason::kCap);
  }
  if (state.phase == Phase::kGlimpse && !precedes_step(effect)) state.phase = Phase::kSmallStep;
  if (state.phase == Phase::kLargeStep && hands_back(state, limits) &&
      ++state.large_tokens >= limits.large_tokens) {
    state.phase = Phase::kSmallStep;
  }
  return {};
}

}  // namespace glimprouter
