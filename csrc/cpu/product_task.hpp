// One piece of a matrix product: some rows, each times some rows of a weight matrix.
#pragma once

#include <cstdint>

namespace glimprouter {

// sums[row][output] = the product of rows[row] and weights[output].
struct ProductTask {
  const float* rows;     // [num_rows, size], side by side
  const float* weights;  // [num_outputs, size], side by side
  std::int64_t size;     // a multiple of kProductLanes
  std::int32_t num_rows;
  std::int32_t num_outputs;
  float* sums;               // [num_rows, num_outputs]
  std::int64_t sums_stride;  // from a row of sums to the next, elements
};

inline constexpr std::int32_t kProductLanes = 16;

}  // namespace glimprouter
