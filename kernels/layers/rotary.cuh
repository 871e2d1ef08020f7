// Rotary embeddings of queries and keys in one launch, behind their norms where there are some: a
// warp a head of a token. The norm has the bits of the norm of short rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/device.cuh"
#include "kernels/layers/elements.cuh"
#include "kernels/layers/norm.cuh"

namespace glimprouter::device {

static_assert(kMostRotarySize <= kWarpNormSize, "a warp holds a head");

struct RotaryShared {
  float heads[kRowWarps][kMostRotarySize];
};

// Where the angles of a row of [batch, heads, tokens] lie.
template <DataType kType>
GR_DEVICE const std::byte* angles_of(const std::byte* angles, const std::int64_t (&strides)[2],
                                     std::uint32_t batch, std::uint32_t token) {
  return angles + element_size(kType) * (batch * strides[0] + token * strides[1]);
}

template <DataType kType>
GR_DEVICE LaneRow head_of(const RotatedHeads& heads, std::uint32_t row, std::int32_t size) {
  LaneRow x = read_lanes<kType>(row_begin<kType>(heads.source, row), size);
  if (heads.weight == nullptr) return x;
  const LaneRow weight = read_lanes<kType>(heads.weight, size);
  const float scale = lanes_scale(x, size, heads.form);
  GR_UNROLL
  for (std::int32_t k = 0; k < kHeldElements; ++k) {
    x.x[k] = rounded<kType>(normed<kType>(x.x[k], scale, weight.x[k], heads.form));
  }
  return x;
}

template <DataType kType>
GR_DEVICE void rotate_row(const RotaryArguments& arguments, const RotatedHeads& heads,
                          std::uint32_t row, float (&head)[kMostRotarySize]) {
  const std::int32_t size = arguments.size;
  const std::int32_t half = size / 2;
  const auto lane = static_cast<std::int32_t>(threadIdx.x % kWarpSize);
  const auto tokens = static_cast<std::uint32_t>(heads.source.shape[2]);
  const std::uint32_t outer = row / tokens;
  const std::uint32_t token = row - outer * tokens;
  const std::uint32_t batch = outer / static_cast<std::uint32_t>(heads.source.shape[1]);
  const std::byte* const cosine =
      angles_of<kType>(arguments.cosine, arguments.cosine_strides, batch, token);
  const std::byte* const sine =
      angles_of<kType>(arguments.sine, arguments.sine_strides, batch, token);
  const LaneRow own = head_of<kType>(heads, row, size);
  GR_UNROLL
  for (std::int32_t k = 0; k < kHeldElements; ++k) {
    const std::int32_t i = lane + k * static_cast<std::int32_t>(kWarpSize);
    if (i < size) head[i] = own.x[k];
  }
  __syncwarp();
  std::byte* const out = heads.out + static_cast<std::int64_t>(row) * size * element_size(kType);
  GR_UNROLL
  for (std::int32_t k = 0; k < kHeldElements; ++k) {
    const std::int32_t i = lane + k * static_cast<std::int32_t>(kWarpSize);
    if (i >= size) break;
    const float turned = i < half ? -head[i + half] : head[i - half];
    const float straight = rounded<kType>(own.x[k] * read_at<kType>(cosine, i));
    const float across = rounded<kType>(turned * read_at<kType>(sine, i));
    write_element(out + i * element_size(kType), kType, straight + across);
  }
}

// grid: rows of queries, then of keys, by kRowWarps.
template <DataType kType>
GR_KERNEL(kRowWarps* kWarpSize)
void rotary_kernel(const RotaryArguments arguments, const std::uint32_t query_rows,
                   const std::uint32_t rows) {
  launch_dependents();
  GR_SHARED(RotaryShared, shared);
  wait_for_dependencies();
  const std::uint32_t warp = threadIdx.x / kWarpSize;
  const std::uint32_t row = blockIdx.x * kRowWarps + warp;
  if (row >= rows) return;  // the whole warp
  const bool key = row >= query_rows;
  rotate_row<kType>(arguments, key ? arguments.keys : arguments.queries,
                    key ? row - query_rows : row, shared.heads[warp]);
}

}  // namespace glimprouter::device
