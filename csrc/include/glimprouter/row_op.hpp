// The fused operation on one row of logits: statistics of the distribution and the selected token.
#pragma once

#include <cstdint>
#include <memory>

#include "glimprouter/types/row_types.hpp"
#include "glimprouter/types/row_view.hpp"

namespace glimprouter {

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
