// RMS norms of rows: a warp a short row, a block a long one. The order of a row's sum depends on
// its length alone, so a row has the same bits in any batch.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/base/device.cuh"
#include "kernels/layers/elements.cuh"

namespace glimprouter::device {

// Rows of heads, of which there are many; up to this length a warp takes one.
inline constexpr std::int32_t kWarpNormSize = 512;
inline constexpr std::int32_t kHeldElements = kWarpNormSize / kWarpSize;
inline constexpr std::uint32_t kRowWarps = 4;  // of a block, each with rows of its own
inline constexpr std::uint32_t kNormThreads = 512;
inline constexpr std::uint32_t kNormWarps = kNormThreads / kWarpSize;
inline constexpr std::int32_t kNormPieces = kMostNormSize / (kNormThreads * kPieceElements);

template <DataType kType>
GR_DEVICE float normed(float x, float scale, float weight, const NormForm& form) {
  const float scaled = x * scale;
  return form.in_type ? rounded<kType>(scaled) * weight : scaled * (weight + form.offset);
}

// 1 / sqrt(mean of squares + epsilon).
GR_DEVICE float norm_scale(float sum, std::int32_t size, const NormForm& form) {
  return inverse_square_root(sum / static_cast<float>(size) + form.epsilon);
}

// Every lane gets it.
GR_DEVICE float warp_sum(float value) {
  GR_UNROLL
  for (int distance = kWarpSize / 2; distance >= 1; distance /= 2) {
    value = value + __shfl_xor_sync(kFullMask, value, distance);
  }
  return value;
}

// A row of up to kWarpNormSize elements in the registers of a warp: element k of lane i is
// i + 32 k. Zeros behind the end.
struct LaneRow {
  float x[kHeldElements];
};

template <DataType kType>
GR_DEVICE LaneRow read_lanes(const std::byte* row, std::int32_t size) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x % kWarpSize);
  LaneRow loaded;
  GR_UNROLL
  for (std::int32_t k = 0; k < kHeldElements; ++k) {
    const std::int32_t i = lane + k * static_cast<std::int32_t>(kWarpSize);
    loaded.x[k] = i < size ? read_at<kType>(row, i) : 0.0f;
  }
  return loaded;
}

GR_DEVICE float lanes_scale(const LaneRow& row, std::int32_t size, const NormForm& form) {
  float sum = 0.0f;
  GR_UNROLL
  for (std::int32_t k = 0; k < kHeldElements; ++k) sum = std::fma(row.x[k], row.x[k], sum);
  return norm_scale(warp_sum(sum), size, form);
}

// grid: rows by kRowWarps.
template <DataType kType>
GR_KERNEL(kRowWarps* kWarpSize)
void short_norm_kernel(const NormArguments arguments, const std::uint32_t rows) {
  launch_dependents();
  const std::int32_t size = arguments.size;
  const auto lane = static_cast<std::int32_t>(threadIdx.x % kWarpSize);
  const std::uint32_t row = blockIdx.x * kRowWarps + threadIdx.x / kWarpSize;
  const LaneRow weight = read_lanes<kType>(arguments.weight, size);
  wait_for_dependencies();
  if (row >= rows) return;  // the whole warp
  LaneRow loaded = read_lanes<kType>(row_begin<kType>(arguments.source, row), size);
  const std::int64_t first = static_cast<std::int64_t>(row) * size;
  if (arguments.added != nullptr) {
    const LaneRow added = read_lanes<kType>(arguments.added + first * element_size(kType), size);
    GR_UNROLL
    for (std::int32_t k = 0; k < kHeldElements; ++k) {
      loaded.x[k] = rounded<kType>(loaded.x[k] + added.x[k]);
    }
  }
  const float scale = lanes_scale(loaded, size, arguments.form);
  GR_UNROLL
  for (std::int32_t k = 0; k < kHeldElements; ++k) {
    const std::int32_t i = lane + k * static_cast<std::int32_t>(kWarpSize);
    if (i >= size) break;
    const std::int64_t at = (first + i) * element_size(kType);
    if (arguments.added != nullptr) write_element(arguments.sum + at, kType, loaded.x[k]);
    write_element(arguments.out + at, kType,
                  normed<kType>(loaded.x[k], scale, weight.x[k], arguments.form));
  }
}

struct NormShared {
  float sums[kNormWarps];
};

// A thread has every kNormThreads-th piece of eight, in order; then warps, then the block.
GR_DEVICE float block_sum(float sum, NormShared& shared) {
  sum = warp_sum(sum);
  if (threadIdx.x % kWarpSize == 0) shared.sums[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  float total = 0.0f;
  GR_UNROLL
  for (std::uint32_t warp = 0; warp < kNormWarps; ++warp) total = total + shared.sums[warp];
  return total;
}

// grid: rows. kPieces: at least as many as a thread has.
template <DataType kType, std::int32_t kPieces>
GR_KERNEL(kNormThreads)
void long_norm_kernel(const NormArguments arguments, const bool vectors) {
  launch_dependents();
  GR_SHARED(NormShared, shared);
  const std::int32_t size = arguments.size;
  const auto begin = static_cast<std::int32_t>(threadIdx.x) * kPieceElements;
  constexpr std::int32_t kStride = static_cast<std::int32_t>(kNormThreads) * kPieceElements;
  wait_for_dependencies();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * size * element_size(kType);
  const std::byte* const source = row_begin<kType>(arguments.source, blockIdx.x);
  float x[kPieces][kPieceElements];
  float sum = 0.0f;
  GR_UNROLL
  for (std::int32_t k = 0; k < kPieces; ++k) {
    read_eight<kType>(source, begin + k * kStride, size, vectors, x[k]);
  }
  GR_UNROLL
  for (std::int32_t k = 0; k < kPieces; ++k) {
    if (arguments.added != nullptr) {
      float added[kPieceElements];
      read_eight<kType>(arguments.added + row, begin + k * kStride, size, vectors, added);
      GR_UNROLL
      for (std::int32_t i = 0; i < kPieceElements; ++i) {
        x[k][i] = rounded<kType>(x[k][i] + added[i]);
      }
      write_eight<kType>(arguments.sum + row, begin + k * kStride, size, vectors, x[k]);
    }
    GR_UNROLL
    for (std::int32_t i = 0; i < kPieceElements; ++i) sum = std::fma(x[k][i], x[k][i], sum);
  }
  const float scale = norm_scale(block_sum(sum, shared), size, arguments.form);
  GR_UNROLL
  for (std::int32_t k = 0; k < kPieces; ++k) {
    float weight[kPieceElements];
    read_eight<kType>(arguments.weight, begin + k * kStride, size, vectors, weight);
    GR_UNROLL
    for (std::int32_t i = 0; i < kPieceElements; ++i) {
      x[k][i] = normed<kType>(x[k][i], scale, weight[i], arguments.form);
    }
    write_eight<kType>(arguments.out + row, begin + k * kStride, size, vectors, x[k]);
  }
}

}  // namespace glimprouter::device
