#include "ops/matrix_product.hpp"

#include <algorithm>

#include "cpu/cpu_backend.hpp"
#include "cpu/product_task.hpp"
#include "glimprouter/thread_pool.hpp"

namespace glimprouter {
namespace {

// A piece: its rows stay in a core's nearest caches while the weights go by, and its sums until
// they are stored.
constexpr std::int64_t kPieceRows = 32;
constexpr std::int64_t kPieceOutputs = 64;
// Multiply-additions that count as one element where work is shared out: with 64 it is shared from
// some 40 us on.
constexpr std::int64_t kProductsAnElement = 64;

void multiply_piece(const Matrix& matrix, const float* rows, std::int64_t num_rows,
                    std::int64_t output, const float* added, float* out) {
  float sums[kPieceRows * kPieceOutputs];
  const std::int64_t num_outputs = std::min(kPieceOutputs, matrix.outputs - output);
  active_backend().product({rows, matrix.weights + output * matrix.size, matrix.size,
                            static_cast<std::int32_t>(num_rows),
                            static_cast<std::int32_t>(num_outputs), sums, num_outputs});
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const float* const own = sums + row * num_outputs;
    const std::int64_t place = row * matrix.outputs + output;
    for (std::int64_t i = 0; i < num_outputs; ++i) {
      float value = own[i];
      if (matrix.bias != nullptr) value += matrix.bias[output + i];
      if (added != nullptr) value += added[place + i];
      out[place + i] = value;
    }
  }
}

}  // namespace

void multiply_rows(const Matrix& matrix, const float* rows, std::int64_t count, const float* added,
                   float* out) {
  const std::int64_t across = (matrix.outputs + kPieceOutputs - 1) / kPieceOutputs;
  const std::int64_t down = (count + kPieceRows - 1) / kPieceRows;
  auto body = [&](std::int64_t piece, int) noexcept {
    const std::int64_t first = piece / across * kPieceRows;
    const std::int64_t place = first * matrix.outputs;
    multiply_piece(matrix, rows + first * matrix.size, std::min(kPieceRows, count - first),
                   piece % across * kPieceOutputs, added == nullptr ? nullptr : added + place,
                   out + place);
  };
  parallel_tasks(across * down, count * matrix.outputs * matrix.size / kProductsAnElement,
                 TaskBody(body));
}

}  // namespace glimprouter
