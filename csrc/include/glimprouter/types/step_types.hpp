// The words of step-wise collaboration: who writes, where a sequence stands, by which rules.
#pragma once

#include <cstdint>

#include "glimprouter/types/row_types.hpp"

namespace glimprouter {

enum class Model : std::uint8_t { kSmall = 0, kLarge = 1 };

enum class Phase : std::uint8_t {
  kGlimpse = 0,        // the small model's logits at a step's start are wanted
  kSmallStep = 1,      // the small model writes
  kLargeStep = 2,      // the large model writes, also the step's first token after a decision
  kAwaitDecision = 3,  // manual route: decide() is wanted
  kAnswer = 4,
  kDone = 5,
};

enum class EndReason : std::uint8_t {
  kNone = 0,
  kDelimiter = 1,
  kCap = 2,
  kThinkEnd = 3,
  kBudget = 4,
  kRepetition = 5,
  kEndOfSequence = 6,
  kAnswerBudget = 7,
};

enum class RouteMode : std::uint8_t { kAuto = 0, kSmall = 1, kLarge = 2, kManual = 3 };
enum class Comparison : std::uint8_t { kGreater = 0, kGreaterEqual = 1 };

// A sequence's own rules. Lengths in tokens, threshold in nats.
struct SequenceLimits {
  float threshold = 1.0f;
  Comparison comparison = Comparison::kGreater;
  RouteMode route = RouteMode::kAuto;
  Model answer_model = Model::kLarge;
  bool repetition_guard = true;
  std::int32_t max_step_tokens = 512;
  std::int32_t max_think_tokens = 8192;
  std::int32_t max_answer_tokens = 2048;
  std::int32_t first_steps_large = 0;
  std::int32_t large_tokens = 0;  // of a step that is decided; then the small model; 0: all
  std::int32_t num_close_tokens = 0;
};

// Where a sequence stands behind its prompt.
struct SequenceStart {
  bool answering = false;      // its thinking is closed
  bool in_step = false;        // a step has begun that nobody decided: the small model writes on
  std::uint8_t automaton = 0;  // of the boundary, within such a step
};

struct SequenceOptions {
  SequenceLimits limits;
  SequenceStart start;
  std::uint8_t shared_states = 255;  // of the boundary: those below mean the same to both models
  SamplingParameters sampling;
  std::int32_t entropy_top_k = 0;  // 0: full entropy
  std::uint64_t seed = 0;
  std::uint64_t substream = 0;
};

}  // namespace glimprouter
