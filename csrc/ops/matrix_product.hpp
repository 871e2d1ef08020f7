// Rows times a weight matrix, float32 on the CPU, on the library's threads. Internal.
//
// A row's result has the same bits in any batch, on any instruction set and any number of threads,
// which no BLAS promises: there, a token that is computed among others may differ from the same
// token alone.
#pragma once

#include <cstdint>

namespace glimprouter {

// Non-owning.
struct Matrix {
  const float* weights;         // [outputs, size], side by side
  const float* bias = nullptr;  // [outputs], or null
  std::int64_t outputs = 0;
  std::int64_t size = 0;  // a multiple of kProductLanes
};

// out[row] = matrix rows[row] (+ bias) (+ added[row]). rows: [count, size], added and out: [count,
// outputs], side by side; added may be null, or out itself.
void multiply_rows(const Matrix& matrix, const float* rows, std::int64_t count, const float* added,
                   float* out);

}  // namespace glimprouter
