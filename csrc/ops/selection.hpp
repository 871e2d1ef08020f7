// Selection of a token from a row whose tiles have been summed. Internal to the row operation.
//
// Filters in the order of transformers: temperature, top-k (exactly k, ties by lower id), top-p
// over the renormalised rest (the smallest prefix with mass >= p), min-p. Without filters a token
// is drawn by inverse CDF over the masses of tiles, then over those of the elements of one tile, in
// the order of ids; with filters over the masses of the candidates in sorted order. All masses are
// in fixed point (fixed_mass.hpp).
#pragma once

#include <cstdint>

#include "arithmetic/fixed_mass.hpp"
#include "ops/row_workspace.hpp"

namespace glimprouter {

// The token for sampling.temperature > 0. The row is valid: its maximum is finite.
std::int32_t sample_token(const RowView& row, const SamplingParameters& sampling,
                          const RandomKey& random, const RowSums& sums,
                          RowWorkspace::Buffers& buffers) noexcept;

// What the filters keep: buffers.candidates and buffers.weights hold it, most probable first.
struct KeptCandidates {
  std::int64_t count;
  Mass mass;
};
KeptCandidates filter_candidates(const RowView& row, const SamplingParameters& sampling,
                                 const RowSums& sums, RowWorkspace::Buffers& buffers) noexcept;

// The k largest elements (fewer when fewer are above -inf), sorted, with weights at temperature
// 1 / inverse_temperature. Returns their number.
std::int64_t take_top_k(const RowView& row, std::int64_t k, float inverse_temperature,
                        const RowSums& sums, RowWorkspace::Buffers& buffers) noexcept;

}  // namespace glimprouter
