// Pieces of a matrix product: some rows, each times some rows of a weight matrix.
#pragma once

#include <cstdint>

namespace glimprouter {

// Few rows. sums[row][output] = the product of rows[row] and weights[output].
struct ProductTask {
  const float* rows;     // [num_rows, size], side by side
  const float* weights;  // [num_outputs, size], side by side
  std::int64_t size;     // a multiple of kProductLanes
  std::int32_t num_rows;
  std::int32_t num_outputs;
  float* sums;  // [num_rows, num_outputs]
};

// As many rows as stand in columns: an element of all of them side by side.
struct ProductBlock {
  const float* columns;  // [size, kProductBlockRows]
  const float* weights;  // [num_outputs, size], side by side
  std::int64_t size;     // a multiple of kProductLanes
  std::int32_t num_rows;
  std::int32_t num_outputs;
  float* sums;  // [num_outputs, kProductBlockRows]; of further rows than num_rows: anything
};

inline constexpr std::int32_t kProductLanes = 16;
inline constexpr std::int32_t kProductBlockRows = 16;
// From so many rows on a block is faster, although some of its rows are computed in vain.
inline constexpr std::int32_t kLeastProductBlockRows = 9;

}  // namespace glimprouter
