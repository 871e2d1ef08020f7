// Attention of a few query tokens over pages, read in place: each thread loads what it needs of
// keys and values when it needs it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "device/device_kv.hpp"
#include "kernels/attention/chunk.cuh"
#include "kernels/base/device.cuh"
#include "kernels/base/elements.cuh"

namespace glimprouter::device {

static_assert(kAttentionLanes == 16, "four threads hold the virtual lanes of a score");

template <int kRows>
struct DirectShared {
  alignas(16) float queries[kRows][kMaxDeviceHeadDim];
  ChunkShared<kRows> chunk;
};

template <int kRows>
class DirectAttention : public ChunkAttention<kRows> {
 public:
  using Shared = DirectShared<kRows>;
  using ChunkAttention<kRows>::ChunkAttention;

  // Four threads a token: each holds four of the 16 virtual lanes, for every row.
  template <DataType kType>
  GR_DEVICE void score_chunk(std::int32_t chunk, Shared& shared) const {
    const ChunkRange seen =
        this->range(chunk, {shared.chunk.seen[0].first, shared.chunk.seen[group_.count - 1].end});
    const auto part = static_cast<std::int32_t>(threadIdx.x % 4);
    const auto own = static_cast<std::int32_t>(threadIdx.x / 4);
    for (std::int32_t base = seen.begin; base < seen.end; base += kThreads / 4) {
      const std::int32_t token = base + own < seen.end ? base + own : seen.end - 1;
      float lanes[kRows][4] = {};
      add_products<kType>(chunk, token, part, shared, lanes);
      GR_UNROLL
      for (int row = 0; row < kRows; ++row) {
        const float score = sum_of_lanes(lanes[row]);
        if (part == 0 && base + own < seen.end && row < group_.count) {
          shared.chunk.rows[row].scores[score_place(token)] = score;
        }
      }
    }
  }

  // A row's weighted values of what it sees of a chunk, four neighbouring elements of it.
  template <DataType kType>
  GR_DEVICE void add_values(std::int32_t chunk, const ChunkRange& seen, std::int32_t quad,
                            const AttentionRow& weights, float (&sums)[4]) const {
    const std::int32_t page_size = layer_.page_size;
    for (std::int32_t page = seen.begin / page_size; page * page_size < seen.end; ++page) {
      const ChunkRange tokens = page_range(seen, page, page_size);
      const std::byte* const values =
          this->page_address(chunk, page) + layer_.value_offset +
          group_.kv_head * layer_.value_head_stride +
          (tokens.begin - page * page_size) * narrow(layer_.value_token_stride) +
          quad * static_cast<std::int32_t>(sizeof(RawQuad<kType>));
      const float rescale = weights.rescale[page];
      GR_UNROLL
      for (int i = 0; i < 4; ++i) sums[i] = sums[i] * rescale;
      add_page<kType>(values, tokens, weights, sums);
    }
  }

 private:
  using Base = ChunkAttention<kRows>;
  using Base::group_;
  using Base::kThreads;
  using Base::layer_;
  using Base::narrow;
  static constexpr int kKeysTogether = 8;  // quads that a thread has on their way

  // Products of a key with every row, [rows, the thread's four lanes].
  template <DataType kType>
  GR_DEVICE void add_products(std::int32_t chunk, std::int32_t token, std::int32_t part,
                              const Shared& shared, float (&lanes)[kRows][4]) const {
    const std::int32_t page = token / layer_.page_size;
    const std::byte* key = this->page_address(chunk, page) + layer_.key_offset +
                           group_.kv_head * layer_.key_head_stride +
                           (token - page * layer_.page_size) * narrow(layer_.key_token_stride) +
                           part * static_cast<std::int32_t>(sizeof(RawQuad<kType>));
    constexpr std::int32_t kStride = kKeysTogether * kAttentionLanes;
    for (std::int32_t first = part * 4; first < layer_.head_dim; first += kStride) {
      RawQuad<kType> raw[kKeysTogether];
      GR_UNROLL
      for (int quad = 0; quad < kKeysTogether; ++quad) {
        if (first + quad * kAttentionLanes >= layer_.head_dim) continue;
        raw[quad] = read_quad<kType>(key + quad * 4 * sizeof(RawQuad<kType>));
      }
      key += kKeysTogether * 4 * sizeof(RawQuad<kType>);
      GR_UNROLL
      for (int quad = 0; quad < kKeysTogether; ++quad) {
        const std::int32_t i = first + quad * kAttentionLanes;
        if (i >= layer_.head_dim) continue;
        float elements[4];
        floats_of(raw[quad], elements);
        GR_UNROLL
        for (int row = 0; row < kRows; ++row) {
          float query[4];
          this->read_floats(&shared.queries[row][i], query);
          GR_UNROLL
          for (int k = 0; k < 4; ++k) {
            lanes[row][k] = std::fma(query[k], elements[k], lanes[row][k]);
          }
        }
      }
    }
  }

  // The 16 virtual lanes in a tree of halves: 8 and 4 apart between threads, 2 and 1 within.
  GR_DEVICE static float sum_of_lanes(const float (&lanes)[4]) {
    float sums[4];
    GR_UNROLL
    for (int k = 0; k < 4; ++k) sums[k] = lanes[k] + __shfl_xor_sync(kFullMask, lanes[k], 2);
    GR_UNROLL
    for (int k = 0; k < 4; ++k) sums[k] = sums[k] + __shfl_xor_sync(kFullMask, sums[k], 1);
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
  }

  template <DataType kType>
  GR_DEVICE void add_page(const std::byte* values, const ChunkRange& tokens,
                          const AttentionRow& weights, float (&sums)[4]) const {
    constexpr std::int32_t kTokensTogether = kType == DataType::kFloat32 ? 8 : 16;
    const std::int32_t stride = narrow(layer_.value_token_stride);
    for (std::int32_t token = tokens.begin; token < tokens.end; token += kTokensTogether) {
      RawQuad<kType> raw[kTokensTogether];
      GR_UNROLL
      for (int k = 0; k < kTokensTogether; ++k) {
        if (token + k < tokens.end) raw[k] = read_quad<kType>(values + k * stride);
      }
      GR_UNROLL
      for (int k = 0; k < kTokensTogether; ++k) {
        if (token + k >= tokens.end) break;
        this->add_value(raw[k], weights.scores[score_place(token + k)], sums);
      }
      values += kTokensTogether * stride;
    }
  }
};

// Scores, weights and weighted values of one chunk. They go to `out` when the group has no other
// chunk, else to the workspace.
template <int kRows, DataType kType>
GR_DEVICE void attend_chunk(const DirectAttention<kRows>& attention, std::int32_t chunk,
                            const AttentionArguments& arguments, DirectShared<kRows>& shared) {
  const RowGroup& group = attention.group();
  const auto warp = static_cast<std::int32_t>(threadIdx.x / kWarpSize);
  attention.template score_chunk<kType>(chunk, shared);
  __syncthreads();
  if (warp < group.count) attention.weigh(warp, chunk, shared.chunk);
  __syncthreads();
  const std::int32_t quads = arguments.pages.layer.value_dim / 4;
  for (auto item = static_cast<std::int32_t>(threadIdx.x); item < group.count * quads;
       item += kRows * static_cast<std::int32_t>(kWarpSize)) {
    const std::int32_t row = item / quads;
    const std::int32_t quad = item - row * quads;
    const ChunkRange seen = attention.range(chunk, shared.chunk.seen[row]);
    if (seen.begin >= seen.end) continue;
    float sums[4] = {};
    attention.template add_values<kType>(chunk, seen, quad, shared.chunk.rows[row], sums);
    attention.leave(row, chunk, quad, shared.chunk, sums);
  }
}

// grid: (row groups, chunks, KV heads). block: a warp a row. Sixteen warps share a
// processor: with more registers a warp has more on its way, but fewer of them do not fill the bus.
template <int kRows>
GR_KERNEL(kRows* static_cast<int>(kWarpSize), 16 / kRows)
void attention_kernel(const AttentionArguments arguments) {
  launch_dependents();
  GR_SHARED(DirectShared<kRows>, shared);
  wait_for_dependencies();
  const DirectAttention<kRows> attention(arguments);
  const RowGroup& group = attention.group();
  const auto chunk = static_cast<std::int32_t>(blockIdx.y);
  if (group.count <= 0 || chunk >= group.chunks) return;
  attention.load_queries(shared.queries, shared.chunk);
  __syncthreads();
  switch (arguments.pages.layer.dtype) {
    case DataType::kFloat32:
      attend_chunk<kRows, DataType::kFloat32>(attention, chunk, arguments, shared);
      break;
    case DataType::kBFloat16:
      attend_chunk<kRows, DataType::kBFloat16>(attention, chunk, arguments, shared);
      break;
    case DataType::kFloat16:
      attend_chunk<kRows, DataType::kFloat16>(attention, chunk, arguments, shared);
      break;
  }
  attention.finish(shared.chunk);
}

}  // namespace glimprouter::device
