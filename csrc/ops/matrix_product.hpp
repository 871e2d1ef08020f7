// Rows times a weight matrix, float32 on the CPU, on the library's threads. Internal.
//
// A row's result has the same bits in any batch, on any instruction set and any number of threads,
// which no BLAS promises: there, a token that is computed among others may differ from the same
// token alone.
#pragma once

#include <cstdint>
#include <vector>

namespace glimprouter {

// Non-owning.
struct Matrix {
  const float* weights;         // [outputs, size], side by side
  const float* bias = nullptr;  // [outputs], or null
  std::int64_t outputs = 0;
  std::int64_t size = 0;  // a multiple of kProductLanes
};

// Rows as products read them: most of many rows in blocks of columns, arranged once for all the
// matrices that they are multiplied with.
class ProductRows {
 public:
  // rows: [count, size], side by side, borrowed until the next call.
  void arrange(const float* rows, std::int64_t count, std::int64_t size);

 private:
  friend void multiply_rows(const Matrix& matrix, const ProductRows& rows, const float* added,
                            float* out);

  const float* rows_ = nullptr;
  std::int64_t count_ = 0;
  std::int64_t size_ = 0;
  std::int64_t blocks_ = 0;     // the first of the rows; what is left are few rows, as they are
  std::vector<float> columns_;  // [blocks, size, kProductBlockRows]; grows, and stays
};

// out[row] = matrix rows[row] (+ bias) (+ added[row]). added and out: [count, outputs], side by
// side; added may be null, or out itself.
void multiply_rows(const Matrix& matrix, const ProductRows& rows, const float* added, float* out);

}  // namespace glimprouter
