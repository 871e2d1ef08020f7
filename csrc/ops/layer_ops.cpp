#include "ops/layer_ops.hpp"

#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "glimprouter/thread_pool.hpp"

namespace glimprouter {
namespace {

constexpr int kSumLanes = 8;

std::int64_t rows_of(const FloatTensor& tensor) {
  return tensor.shape[0] * tensor.shape[1] * tensor.shape[2];
}

// Where row `index` begins, counted as if the tensor were contiguous.
const float* row_begin(const FloatTensor& tensor, std::int64_t index) {
  const std::int64_t third = index % tensor.shape[2];
  const std::int64_t rest = index / tensor.shape[2];
  return tensor.data + third * tensor.strides[2] + rest % tensor.shape[1] * tensor.strides[1] +
         rest / tensor.shape[1] * tensor.strides[0];
}

// The row side by side: where it is, or copied to scratch, which grows with the largest and stays.
const float* adjacent_row(const FloatTensor& tensor, std::int64_t index,
                          std::vector<float>& scratch) {
  const float* const row = row_begin(tensor, index);
  const std::int64_t size = tensor.shape[3];
  const std::int64_t stride = tensor.strides[3];
  if (stride == 1 || size <= 1) return row;
  scratch.resize(static_cast<std::size_t>(size));
  for (std::int64_t i = 0; i < size; ++i) scratch[static_cast<std::size_t>(i)] = row[i * stride];
  return scratch.data();
}

// Fixed lanes and a fixed tree: no order that a compiler may choose. Squares of floats are exact in
// double.
double sum_of_squares(const float* row, std::int64_t size) {
  double sums[kSumLanes] = {};
  std::int64_t i = 0;
  for (; i + kSumLanes <= size; i += kSumLanes) {
    for (int lane = 0; lane < kSumLanes; ++lane) {
      const double x = row[i + lane];
      sums[lane] += x * x;
    }
  }
  for (int lane = 0; i < size; ++i, ++lane) {
    const double x = row[i];
    sums[lane] += x * x;
  }
  for (int width = kSumLanes / 2; width >= 1; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[width + lane];
  }
  return sums[0];
}

void norm_row(const float* row, std::int64_t size, const RmsNorm& norm, float* __restrict out) {
  const double mean = sum_of_squares(row, size) / static_cast<double>(size);
  const auto scale = static_cast<float>(1.0 / std::sqrt(mean + norm.epsilon));
  for (std::int64_t i = 0; i < size; ++i) {
    out[i] = (row[i] * scale) * (norm.weight[i] + norm.offset);
  }
}

void rotate_row(const float* row, const float* cosine, const float* sine, std::int64_t half,
                float* __restrict out) {
  for (std::int64_t i = 0; i < half; ++i) {
    out[i] = row[i] * cosine[i] - row[half + i] * sine[i];
  }
  for (std::int64_t i = half; i < 2 * half; ++i) {
    out[i] = row[i] * cosine[i] + row[i - half] * sine[i];
  }
}

// Angles [1 or B, T, D] stand in the last three axes.
void check_angles(const FloatTensor& heads, const FloatTensor& angles) {
  const bool batch = angles.shape[1] == 1 || angles.shape[1] == heads.shape[0];
  if (angles.shape[0] == 1 && batch && angles.shape[2] == heads.shape[2] &&
      angles.shape[3] == heads.shape[3]) {
    return;
  }
  throw std::invalid_argument(
      "cosine and sine must have the shape [1 or batch, tokens, size] for heads [batch, heads, "
      "tokens, size]");
}

}  // namespace

void rms_norm(const FloatTensor& source, const RmsNorm& norm, float* out) {
  const std::int64_t rows = rows_of(source);
  const std::int64_t size = source.shape[3];
  auto body = [&](std::int64_t index, int) noexcept {
    thread_local std::vector<float> scratch;
    norm_row(adjacent_row(source, index, scratch), size, norm, out + index * size);
  };
  parallel_tasks(rows, rows * size, TaskBody(body));
}

void rotate_heads(const FloatTensor& source, const FloatTensor& cosine, const FloatTensor& sine,
                  float* out) {
  check_angles(source, cosine);
  check_angles(source, sine);
  const std::int64_t size = source.shape[3];
  if (size % 2 != 0) throw std::invalid_argument("the size of the heads must be even");
  const std::int64_t rows = rows_of(source);
  const std::int64_t heads = source.shape[1];
  const std::int64_t tokens = source.shape[2];
  auto body = [&](std::int64_t index, int) noexcept {
    thread_local std::vector<float> scratch[3];
    const std::int64_t batch = index / (heads * tokens);
    const auto angles_row = [&](const FloatTensor& angles) {
      return (angles.shape[1] == 1 ? 0 : batch * tokens) + index % tokens;
    };
    rotate_row(adjacent_row(source, index, scratch[0]),
               adjacent_row(cosine, angles_row(cosine), scratch[1]),
               adjacent_row(sine, angles_row(sine), scratch[2]), size / 2, out + index * size);
  };
  parallel_tasks(rows, rows * size, TaskBody(body));
}

}  // namespace glimprouter
