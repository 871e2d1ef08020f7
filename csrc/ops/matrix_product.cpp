#include "ops/matrix_product.hpp"

#include <algorithm>
#include <cstddef>

#include "cpu/cpu_backend.hpp"
#include "cpu/product_task.hpp"
#include "glimprouter/thread_pool.hpp"
#include "ops/transposed.hpp"

namespace glimprouter {
namespace {

constexpr std::int64_t kPieceOutputs = 64;  // whose sums stay near until they are stored
// Multiply-additions that count as one element where work is shared out: with 64 it is shared from
// some 40 us on.
constexpr std::int64_t kProductsAnElement = 64;
constexpr std::int64_t kBlockRows = kProductBlockRows;

// Rows [count, size] as columns [size, kBlockRows]; those of rows that there are not are 0.
void arrange_block(const float* rows, std::int64_t count, std::int64_t size, float* columns) {
  if (count < kBlockRows) std::fill_n(columns, size * kBlockRows, 0.0f);
  std::int64_t row = 0;
  for (; row + 4 <= count; row += 4) {
    for (std::int64_t i = 0; i < size; i += 4) {  // a multiple of 16
      FourFloats turned[4];
      transpose_four(rows + row * size + i, size, turned);
      for (int k = 0; k < 4; ++k) store_four(turned[k], columns + (i + k) * kBlockRows + row);
    }
  }
  for (; row < count; ++row) {
    for (std::int64_t i = 0; i < size; ++i) columns[i * kBlockRows + row] = rows[row * size + i];
  }
}

// Some outputs of a product, and what is added to their sums.
struct Piece {
  const float* bias;   // [count], or null
  const float* added;  // [rows, stride], or null
  float* out;          // [rows, stride]
  std::int64_t count;
  std::int64_t stride;

  void store(std::int64_t row, std::int64_t output, float sum) const {
    const std::int64_t place = row * stride + output;
    if (bias != nullptr) sum += bias[output];
    if (added != nullptr) sum += added[place];
    out[place] = sum;
  }
};

void store_rows(const float* sums, std::int64_t rows, const Piece& piece) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < piece.count; ++i) piece.store(row, i, sums[row * piece.count + i]);
  }
}

// sums: [outputs, kBlockRows].
void store_block(const float* sums, std::int64_t rows, const Piece& piece) {
  const std::int64_t whole_rows = rows / 4 * 4;
  const std::int64_t whole_outputs = piece.count / 4 * 4;
  for (std::int64_t row = 0; row < whole_rows; row += 4) {
    for (std::int64_t i = 0; i < whole_outputs; i += 4) {
      FourFloats turned[4];
      transpose_four(sums + i * kBlockRows + row, kBlockRows, turned);
      for (int k = 0; k < 4; ++k) {
        const std::int64_t place = (row + k) * piece.stride + i;
        if (piece.bias != nullptr) turned[k] += load_four(piece.bias + i);
        if (piece.added != nullptr) turned[k] += load_four(piece.added + place);
        store_four(turned[k], piece.out + place);
      }
    }
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t first = row < whole_rows ? whole_outputs : 0;
    for (std::int64_t i = first; i < piece.count; ++i) {
      piece.store(row, i, sums[i * kBlockRows + row]);
    }
  }
}

}  // namespace

void ProductRows::arrange(const float* rows, std::int64_t count, std::int64_t size) {
  rows_ = rows;
  count_ = count;
  size_ = size;
  blocks_ = (count + kBlockRows - kLeastProductBlockRows) / kBlockRows;
  const auto needed = static_cast<std::size_t>(blocks_ * size * kBlockRows);
  if (columns_.size() < needed) columns_.resize(needed);
  auto body = [&](std::int64_t block, int) noexcept {
    const std::int64_t first = block * kBlockRows;
    arrange_block(rows + first * size, std::min(kBlockRows, count - first), size,
                  columns_.data() + first * size);
  };
  parallel_tasks(blocks_, blocks_ * kBlockRows * size, TaskBody(body));
}

void multiply_rows(const Matrix& matrix, const ProductRows& rows, const float* added, float* out) {
  const std::int64_t size = matrix.size;
  const std::int64_t in_blocks = std::min(rows.count_, rows.blocks_ * kBlockRows);
  const std::int64_t across = (matrix.outputs + kPieceOutputs - 1) / kPieceOutputs;
  const std::int64_t down = rows.blocks_ + (in_blocks < rows.count_ ? 1 : 0);
  auto body = [&](std::int64_t index, int) noexcept {
    // Blocks one after another while a piece of the weights is near.
    const std::int64_t output = index / down * kPieceOutputs;
    const std::int64_t first = index % down * kBlockRows;
    const std::int64_t place = first * matrix.outputs + output;
    const std::int64_t count = std::min(kPieceOutputs, matrix.outputs - output);
    const auto num_rows = static_cast<std::int32_t>(std::min(kBlockRows, rows.count_ - first));
    const Piece piece{matrix.bias == nullptr ? nullptr : matrix.bias + output,
                      added == nullptr ? nullptr : added + place, out + place, count,
                      matrix.outputs};
    const float* const weights = matrix.weights + output * size;
    const auto outputs = static_cast<std::int32_t>(count);
    float sums[kBlockRows * kPieceOutputs];
    if (first < in_blocks) {
      const float* const columns = rows.columns_.data() + first * size;
      active_backend().product_block({columns, weights, size, num_rows, outputs, sums});
      store_block(sums, num_rows, piece);
    } else {
      active_backend().product({rows.rows_ + first * size, weights, size, num_rows, outputs, sums});
      store_rows(sums, num_rows, piece);
    }
  };
  parallel_tasks(across * down, rows.count_ * matrix.outputs * size / kProductsAnElement,
                 TaskBody(body));
}

}  // namespace glimprouter
