// The fused operation on one row of logits: statistics of the distribution and the selected token.
#pragma once

#include <cstdint>
#include <memory>

#include "arithmetic/random.hpp"
#include "glimprouter/row_view.hpp"

namespace glimprouter {

// What is wrong with a row, if anything. Of several faults the first in this order is reported:
// NaN, +inf, all masked (every element is -inf).
enum class RowStatus : std::uint8_t {
  kOk = 0,
  kNan = 1,
  kPositiveInfinity = 2,
  kAllMasked = 3,
  kNotWaiting = 4,  // by a device router only: the row is not open, or waits for another model
};

// Filters in the order of transformers: temperature, top-k, top-p, min-p.
struct SamplingParameters {
  float temperature = 0.0f;  // 0: greedy, the lowest id of the maximum
  float top_p = 1.0f;        // (0, 1]; 1: off. Mass of the rest that top-k left
  std::int32_t top_k = 0;    // 0: off. Exactly k tokens, ties by lower id
  float min_p = 0.0f;        // [0, 1]; 0: off. Fraction of the largest probability
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

// Scratch memory of one thread. Nothing is allocated after construction.
class RowWorkspace {
 public:
  // Throws std::invalid_argument beyond kMaxVocabulary (fixed_mass.hpp).
  explicit RowWorkspace(std::int64_t max_vocabulary);
  ~RowWorkspace();
  RowWorkspace(RowWorkspace&&) noexcept;
  RowWorkspace& operator=(RowWorkspace&&) noexcept;

  std::int64_t max_vocabulary() const;

  struct Buffers;
  Buffers& buffers() { return *buffers_; }

 private:
  std::unique_ptr<Buffers> buffers_;
};

// Evaluates one row. logprobs: [num_logprob_ids], written when the request names ids (NaN when the
// status is not kOk). row.size must lie in [1, workspace.max_vocabulary()].
// Accuracy: entropy within 2e-6 max(1, H) of float64 on the same input values.
RowResult evaluate_row(const RowView& row, const RowRequest& request, RowWorkspace& workspace,
                       float* logprobs) noexcept;

// The candidates that the filters leave, most probable first (ties by lower id), with their
// renormalised probabilities. Returns their number; ids and probabilities: [row.size]. A row with a
// fault, or temperature 0 (one candidate), is handled as evaluate_row does: 0 and 1 candidates.
std::int64_t nucleus(const RowView& row, const SamplingParameters& sampling,
                     RowWorkspace& workspace, std::int32_t* ids, float* probabilities) noexcept;

}  // namespace glimprouter
