// What one evaluated row does to its sequence: decision, commitment and the sums of the running
// step, written once for host and device.
#pragma once

#include <cstdint>

#include "arithmetic/row_statistics.hpp"
#include "glimprouter/step_boundary.hpp"
#include "glimprouter/types/host_device.hpp"
#include "glimprouter/types/row_types.hpp"
#include "glimprouter/types/step_columns.hpp"
#include "router/transition.hpp"

namespace glimprouter {

// A committed token, enough to replay the transition and the sums of its step.
struct TokenRecord {
  std::int32_t token;
  float logprob;  // raw
  float entropy;  // nats, of the distribution that the token was selected from
  Model writer;
};

// The part of a sequence that a step reads and writes. Plain data: it may live in device memory.
struct SequenceCore {
  SequenceOptions options;
  SequenceState state;
  std::int32_t candidate_token = -1;  // of a manual glimpse that waits for decide()
  float candidate_logprob = 0;
  float candidate_entropy = 0;
  double step_logprob = 0;  // sums over the running step; 0 at its start and in the answer
  double step_entropy = 0;
};

// What a step did. token: committed, or -1; route: decided in this step (0 none, 1 small, 2 large).
struct StepDecision {
  std::int32_t token = -1;
  std::int32_t forced = 0;
  EndReason end_reason = EndReason::kNone;
  std::uint8_t route = 0;
};

// What is asked about the row of a sequence whose turn it is, or about one behind so many drafts.
// model: whose turn it is.
GR_HOST_DEVICE inline RowRequest request_of(const SequenceCore& sequence, Model model,
                                            std::int32_t ahead = 0) {
  RowRequest request;
  request.sampling = sequence.options.sampling;
  request.random = RandomKey{sequence.options.seed, sequence.options.substream,
                             static_cast<std::uint64_t>(sequence.state.position + ahead),
                             static_cast<std::uint32_t>(model)};
  request.entropy_top_k = sequence.options.entropy_top_k;
  return request;
}

// The boundary's state where the other model goes on: that within a marker of thinking which the
// two write in unlike tokens says nothing to it. So one that both begin and end together is not
// seen.
GR_HOST_DEVICE inline void hand_over(SequenceCore& sequence) {
  std::uint8_t& automaton = sequence.state.automaton;
  if (automaton >= sequence.options.shared_states) {
    automaton = static_cast<std::uint8_t>(automaton & StepBoundary::kContent);
  }
}

// Where a sequence begins, behind its prompt, which the small model's boundary has read.
GR_HOST_DEVICE inline void begin(SequenceCore& sequence) {
  begin_sequence(sequence.state, sequence.options);
  if (waits_for(sequence.state, sequence.options.limits, Model::kLarge)) hand_over(sequence);
}

// Commits a token. boundary: of the writer.
GR_HOST_DEVICE inline TransitionResult commit_record(SequenceCore& sequence,
                                                     const BoundaryTable& boundary,
                                                     const TokenRecord& record) {
  SequenceState& state = sequence.state;
  // In a replay the decision is the writer's name: a step's start that the large model wrote.
  if (state.phase == Phase::kGlimpse && record.writer == Model::kLarge) {
    state.phase = Phase::kLargeStep;
    hand_over(sequence);
  }
  const TokenEffect effect = boundary.effect(state.automaton, record.token);
  const TransitionResult transition =
      commit_token(state, sequence.options.limits, effect, boundary.texts[record.token]);
  if (!waits_for(state, sequence.options.limits, record.writer)) hand_over(sequence);
  sequence.step_logprob += static_cast<double>(record.logprob);
  sequence.step_entropy += static_cast<double>(record.entropy);
  const bool thinking = state.phase != Phase::kAnswer && state.phase != Phase::kDone;
  if (!thinking || state.step_tokens == 0) sequence.step_logprob = sequence.step_entropy = 0;
  return transition;
}

// Takes over a valid row (status kOk) of the model that the sequence waits for. boundary: of that
// model.
GR_HOST_DEVICE inline StepDecision advance(SequenceCore& sequence, const BoundaryTable& boundary,
                                           Model model, const RowResult& result) {
  StepDecision decision;
  SequenceState& state = sequence.state;
  if (state.phase == Phase::kGlimpse &&
      !precedes_step(boundary.effect(state.automaton, result.token))) {
    if (sequence.options.limits.route == RouteMode::kManual) {
      state.phase = Phase::kAwaitDecision;
      sequence.candidate_token = result.token;
      sequence.candidate_logprob = result.logprob;
      sequence.candidate_entropy = result.entropy;
      return decision;
    }
    const bool large = wants_large(sequence.options.limits, result.entropy);
    decision.route = large ? 2 : 1;
    if (large) {
      state.phase = Phase::kLargeStep;
      hand_over(sequence);
      return decision;
    }
  }
  const TransitionResult transition =
      commit_record(sequence, boundary, {result.token, result.logprob, result.entropy, model});
  decision.token = result.token;
  decision.forced = transition.forced_tokens;
  decision.end_reason = transition.end_reason;
  return decision;
}

// Writes what a row's statistics say, into the columns that there are.
GR_HOST_DEVICE inline void write_statistics(const ColumnPointers& out, std::int64_t index,
                                            const RowResult& result) {
  out.entropy[index] = result.entropy;
  if (out.logprob != nullptr) out.logprob[index] = result.logprob;
  if (out.logsumexp != nullptr) out.logsumexp[index] = result.logsumexp;
  if (out.max_prob != nullptr) out.max_prob[index] = result.max_prob;
  if (out.margin != nullptr) out.margin[index] = result.margin;
  if (out.varentropy != nullptr) out.varentropy[index] = result.varentropy;
}

GR_HOST_DEVICE inline void write_decision(const ColumnPointers& out, std::int64_t index,
                                          const StepDecision& decision,
                                          const SequenceCore& sequence) {
  out.token[index] = decision.token;
  out.route[index] = decision.route;
  out.end_reason[index] = static_cast<std::uint8_t>(decision.end_reason);
  out.forced[index] = decision.forced;
  out.phase[index] = static_cast<std::uint8_t>(sequence.state.phase);
  out.room[index] = room_of(sequence.state, sequence.options.limits);
}

// A row that nothing was done with, and why.
GR_HOST_DEVICE inline void write_untouched(const ColumnPointers& out, std::int64_t index,
                                           RowStatus why, Phase phase, std::int32_t room,
                                           std::int32_t num_ids) {
  write_statistics(out, index, invalid_result(why));
  out.status[index] = static_cast<std::uint8_t>(why);
  out.token[index] = out.step_index[index] = -1;
  out.route[index] = 0;
  out.phase[index] = static_cast<std::uint8_t>(phase);
  out.end_reason[index] = static_cast<std::uint8_t>(EndReason::kNone);
  out.forced[index] = 0;
  out.room[index] = room;
  for (std::int32_t i = 0; i < num_ids; ++i) out.logprobs[index * num_ids + i] = kNotANumber;
}

// One evaluated row: moves its sequence on, unless the row is invalid, and writes every column but
// logprobs. The caller logs the token that the decision commits.
GR_HOST_DEVICE inline StepDecision step_sequence(SequenceCore& sequence,
                                                 const BoundaryTable& boundary, Model model,
                                                 const RowResult& result, const ColumnPointers& out,
                                                 std::int64_t index) {
  write_statistics(out, index, result);
  out.status[index] = static_cast<std::uint8_t>(result.status);
  const bool answers = sequence.state.phase == Phase::kAnswer;
  out.step_index[index] = answers ? -1 : sequence.state.step_index;
  StepDecision decision;
  if (result.status == RowStatus::kOk) decision = advance(sequence, boundary, model, result);
  write_decision(out, index, decision, sequence);
  return decision;
}

// Where a sequence stood before a token.
struct Standing {
  std::int32_t position;
  bool answers;

  GR_HOST_DEVICE explicit Standing(const SequenceState& state)
      : position(state.position), answers(state.phase == Phase::kAnswer) {}
};

// Whether a sequence has taken one token since, and goes on with the same model, with no end of
// thinking between: so that a draft of the next token is of use.
GR_HOST_DEVICE inline bool goes_on(const SequenceCore& sequence, const Standing& before,
                                   Model model) {
  const Standing now(sequence.state);
  return now.position == before.position + 1 && now.answers == before.answers &&
         waits_for(sequence.state, sequence.options.limits, model);
}

// Takes the rows of one sequence in order, as long as each draft is the token that was drawn in its
// place. A sequence of no drafts has one row. Calls log(record) for each token.
//
// results: [count + 1]; drafts: [count]; index: of the first row in the outputs.
template <typename Log>
GR_HOST_DEVICE inline void take_rows(SequenceCore& sequence, const BoundaryTable& boundary,
                                     Model model, const RowResult* results,
                                     const std::int32_t* drafts, std::int32_t count,
                                     const ColumnPointers& out, std::int64_t index,
                                     std::int32_t num_ids, const Log& log) {
  for (std::int32_t k = 0; k <= count; ++k) {
    const Standing before(sequence.state);
    const RowResult& result = results[k];
    const StepDecision decision = step_sequence(sequence, boundary, model, result, out, index + k);
    if (decision.token >= 0)
      log(TokenRecord{decision.token, result.logprob, result.entropy, model});
    if (k < count && (decision.token != drafts[k] || !goes_on(sequence, before, model))) {
      const std::int32_t room = room_of(sequence.state, sequence.options.limits);
      while (++k <= count) {
        write_untouched(out, index + k, RowStatus::kNotReached, sequence.state.phase, room,
                        num_ids);
      }
    }
  }
}

// Moves a copy of a sequence on by drafts, as if its model had written them. False where they end
// what that model may write: nothing follows then. boundary: of the drafts' vocabulary.
GR_HOST_DEVICE inline bool follow_drafts(SequenceCore& copy, const BoundaryTable& boundary,
                                         Model model, const std::int32_t* drafts,
                                         std::int32_t count) {
  for (std::int32_t k = 0; k < count; ++k) {
    const Standing before(copy.state);
    commit_record(copy, boundary, {drafts[k], 0.0f, 0.0f, model});
    if (!goes_on(copy, before, model)) return false;
  }
  return true;
}

// Says what the sequence would do behind its drafts, on a copy of it. boundary: of the drafts'
// vocabulary, and of the row's.
GR_HOST_DEVICE inline void take_draft(SequenceCore& copy, const BoundaryTable& boundary,
                                      Model writer, const RowResult& result,
                                      const std::int32_t* drafts, std::int32_t count,
                                      const ColumnPointers& out, std::int64_t index,
                                      std::int32_t num_ids) {
  hand_over(copy);  // its state is the writer's, the drafts are not
  if (follow_drafts(copy, boundary, writer, drafts, count)) {
    step_sequence(copy, boundary, writer, result, out, index);
    return;
  }
  write_untouched(out, index, RowStatus::kNotReached, copy.state.phase, 0, num_ids);
}

}  // namespace glimprouter
