// What is asked about one row of logits, and the answer. Plain data.
#pragma once

#include <cstdint>

namespace glimprouter {

// What is wrong with a row, if anything. Of several faults the first in this order is reported:
// NaN, +inf, all masked (every element is -inf).
enum class RowStatus : std::uint8_t {
  kOk = 0,
  kNan = 1,
  kPositiveInfinity = 2,
  kAllMasked = 3,
  kNotWaiting = 4,  // by a device router only: the row is not open, or waits for another model
  kNotReached = 5,  // behind a draft that did not hold, or that ends what the model may write
};

// Filters in the order of transformers: temperature, top-k, top-p, min-p.
struct SamplingParameters {
  float temperature = 0.0f;  // 0: greedy, the lowest id of the maximum
  float top_p = 1.0f;        // (0, 1]; 1: off. Mass of the rest that top-k left
  std::int32_t top_k = 0;    // 0: off. Exactly k tokens, ties by lower id
  float min_p = 0.0f;        // [0, 1]; 0: off. Fraction of the largest probability
};

// seed and substream name the sequence, position counts its generated tokens, purpose separates the
// draws that one position may need (0: a token by the small model, 1: by the large one).
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint64_t substream = 0;
  std::uint64_t position = 0;
  std::uint32_t purpose = 0;
};

struct RowRequest {
  SamplingParameters sampling;
  RandomKey random;
  std::int32_t entropy_top_k = 0;  // 0: entropy over the whole row; else over the renormalised k
  bool want_varentropy = false;
  const std::int32_t* logprob_ids = nullptr;  // [num_logprob_ids], each in [0, vocabulary)
  std::int32_t num_logprob_ids = 0;
};

// Nats, at temperature 1, before any filter. A row whose status is not kOk has token = argmax = -1
// and NaN statistics.
struct RowResult {
  RowStatus status;
  std::int32_t argmax;  // lowest id of the maximum
  std::int32_t token;   // selected by the sampling parameters
  float entropy;
  float logsumexp;
  float max_prob;
  float margin;      // p1 - p2
  float logprob;     // of token
  float varentropy;  // variance of -ln p; NaN unless requested
};

}  // namespace glimprouter
