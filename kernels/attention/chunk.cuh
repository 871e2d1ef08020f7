// A chunk of the context (attention_task.hpp) for up to kRows query rows that share a KV head: what
// a block of attention does, whichever way keys and values come to it. The last block that is done
// with the rows merges their chunks in order. No block waits for another, and neither the grid nor
// the batch has a say in a result: it has the bits of the CPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "device/device_kv.hpp"
#include "kernels/attention/group.cuh"
#include "kernels/attention/row.cuh"
#include "kernels/base/device.cuh"
#include "kernels/base/elements.cuh"

namespace glimprouter::device {

template <int kRows>
struct ChunkShared {
  AttentionRow rows[kRows];
  PartialSum sums[kRows];
  KeyRange seen[kRows];
  float sinks[kRows];  // kNoMaximum: none
  bool last;
};

template <int kRows>
class ChunkAttention {
 public:
  GR_DEVICE explicit ChunkAttention(const AttentionArguments& arguments)
      : arguments_(arguments),
        layer_(arguments.pages.layer),
        heads_a_group_(arguments.heads / arguments.pages.layer.num_kv_heads),
        chunk_tokens_(layer_.page_size * attention_chunk_pages(layer_.page_size)),
        group_(row_group<kRows>(arguments)) {
    if (group_.count <= 0) return;
    group_.first_chunk = keys_seen(0).first / chunk_tokens_;
    group_.chunks = (keys_seen(group_.count - 1).end - 1) / chunk_tokens_ - group_.first_chunk + 1;
  }

  GR_DEVICE const RowGroup& group() const { return group_; }

  GR_DEVICE QueryRow query_row(std::int32_t row) const {
    const std::int32_t token = (group_.first_row + row) / heads_a_group_;
    const std::int32_t head = (group_.first_row + row) % heads_a_group_;
    return {static_cast<std::int64_t>(group_.first_token) + token,
            group_.kv_head * heads_a_group_ + head};
  }
  GR_DEVICE KeyRange keys_seen(std::int32_t row) const {
    const std::int32_t token = (group_.first_row + row) / heads_a_group_;
    const std::int32_t end = group_.first_length + token + 1;
    return {first_key_seen(end, arguments_.window, arguments_.chunk_size), end};
  }

  // Those of the keys that lie in a chunk (counted within the group's).
  GR_DEVICE ChunkRange range(std::int32_t chunk, const KeyRange& keys) const {
    const std::int32_t base = (group_.first_chunk + chunk) * chunk_tokens_;
    const std::int32_t begin = keys.first - base;
    const std::int32_t end = keys.end - base;
    return {begin > 0 ? begin : 0, end < chunk_tokens_ ? end : chunk_tokens_};
  }

  // Where a page of the chunk begins.
  GR_DEVICE const std::byte* page_address(std::int32_t chunk, std::int32_t page) const {
    const std::int64_t index =
        static_cast<std::int64_t>(group_.sequence) * arguments_.table_width +
        (group_.first_chunk + chunk) * attention_chunk_pages(layer_.page_size) + page;
    return arguments_.pages.arena + arguments_.block_table[index] * KvLayout::kPageUnit;
  }

  // Multiplied by the scale; and what else is known of the rows.
  template <int kHeadDim>
  GR_DEVICE void load_queries(float (&queries)[kRows][kHeadDim], ChunkShared<kRows>& shared) const {
    const std::int32_t head_dim = layer_.head_dim;
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < kRows * head_dim; i += kThreads) {
      const std::int32_t row = i / head_dim;
      const std::int32_t element = i - row * head_dim;
      float value = 0.0f;
      if (row < group_.count) {
        const QueryRow query = query_row(row);
        const std::byte* const source =
            address(arguments_.queries, query) + element * element_size(arguments_.queries.dtype);
        value = read_element(source, arguments_.queries.dtype) * arguments_.scale;
      }
      queries[row][element] = value;
      if (element == 0 && row < group_.count) {
        shared.sinks[row] = sink_of(arguments_.sinks, query_row(row).head);
        shared.seen[row] = keys_seen(row);
      }
    }
  }

  // Scores of a row become weights, by a warp. Between two barriers.
  GR_DEVICE void weigh(std::int32_t row, std::int32_t chunk, ChunkShared<kRows>& shared) const {
    const ChunkRange seen = range(chunk, shared.seen[row]);
    if (seen.begin >= seen.end) return;
    const PartialSum sum = weigh_row(shared.rows[row], seen, layer_.page_size, arguments_.softcap);
    if (threadIdx.x % kWarpSize != 0) return;
    shared.sums[row] = sum;
    if (group_.chunks == 1) return;
    float* const target = partial_sum(row, chunk);
    target[0] = sum.maximum;
    target[1] = sum.sum;
  }

  // Four elements of what a row summed over a chunk: to `out` when the group has no other chunk,
  // else to the workspace.
  GR_DEVICE void leave(std::int32_t row, std::int32_t chunk, std::int32_t quad,
                       const ChunkShared<kRows>& shared, const float (&sums)[4]) const {
    if (group_.chunks == 1) {
      store_out(row, quad, final_scale(shared.sinks[row], shared.sums[row]), sums);
      return;
    }
    Vec16 raw;
    GR_UNROLL
    for (int i = 0; i < 4; ++i) raw.word[i] = std::bit_cast<std::uint32_t>(sums[i]);
    store16(partial_out(row, chunk, quad), raw);
  }

  // What is left when the block has left its chunk: the last block of the group merges all.
  GR_DEVICE void finish(ChunkShared<kRows>& shared) const {
    if (group_.chunks == 1) return;
    __syncthreads();
    if (threadIdx.x == 0) {
      std::uint32_t* const ticket =
          arguments_.workspace.tickets + std::int64_t{blockIdx.z} * gridDim.x + blockIdx.x;
      const auto last = static_cast<std::uint32_t>(group_.chunks - 1);
      shared.last = ticket_increment(ticket, last) == last;
    }
    __syncthreads();
    if (!shared.last) return;
    __threadfence();
    const std::int32_t quads = layer_.value_dim / 4;
    for (auto item = static_cast<std::int32_t>(threadIdx.x); item < group_.count * quads;
         item += kThreads) {
      merge_row(item / quads, item % quads, shared);
    }
  }

 protected:
  static constexpr std::int32_t kThreads = kRows * static_cast<std::int32_t>(kWarpSize);

  // A token of one head is small (kMaxDeviceHeadDim): half the registers.
  GR_DEVICE static std::int32_t narrow(std::int64_t stride) {
    return static_cast<std::int32_t>(stride);
  }

  GR_DEVICE static void read_floats(const float* source, float (&values)[4]) {
    const Vec16 raw = load16(source);
    GR_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = std::bit_cast<float>(raw.word[i]);
  }

  template <DataType kType>
  GR_DEVICE static void add_value(const RawQuad<kType>& raw, float weight, float (&sums)[4]) {
    float elements[4];
    floats_of(raw, elements);
    GR_UNROLL
    for (int i = 0; i < 4; ++i) sums[i] = std::fma(weight, elements[i], sums[i]);
  }

  const AttentionArguments& arguments_;
  const LayerLayout& layer_;
  std::int32_t heads_a_group_;
  std::int32_t chunk_tokens_;
  RowGroup group_;

 private:
  static constexpr int kChunksTogether = 4;  // of a merge, on their way at once

  GR_DEVICE static std::byte* address(const DeviceHeads& heads, const QueryRow& query) {
    return heads.data + query.token * heads.token_stride + query.head * heads.head_stride;
  }

  GR_DEVICE void store_out(std::int32_t row, std::int32_t quad, float scale,
                           const float (&values)[4]) const {
    const DataType dtype = arguments_.out.dtype;
    std::byte* const target =
        address(arguments_.out, query_row(row)) + quad * 4 * element_size(dtype);
    GR_UNROLL
    for (int i = 0; i < 4; ++i) {
      write_element(target + i * element_size(dtype), dtype, values[i] * scale);
    }
  }

  // Where the row leaves what it summed over a chunk.
  GR_DEVICE std::int64_t partial(std::int32_t row, std::int32_t chunk) const {
    const QueryRow query = query_row(row);
    return (query.token * arguments_.heads + query.head) * gridDim.y + chunk;
  }
  GR_DEVICE float* partial_out(std::int32_t row, std::int32_t chunk, std::int32_t quad) const {
    return arguments_.workspace.out + partial(row, chunk) * layer_.value_dim + quad * 4;
  }
  GR_DEVICE float* partial_sum(std::int32_t row, std::int32_t chunk) const {
    return arguments_.workspace.sums + partial(row, chunk) * 2;
  }

  // Merges the chunks of one row in order, four elements of it.
  GR_DEVICE void merge_row(std::int32_t row, std::int32_t quad,
                           const ChunkShared<kRows>& shared) const {
    const std::int32_t first = shared.seen[row].first / chunk_tokens_ - group_.first_chunk;
    const std::int32_t last = (shared.seen[row].end - 1) / chunk_tokens_ - group_.first_chunk;
    PartialSum total{partial_sum(row, first)[0], partial_sum(row, first)[1]};
    float sums[4];
    read_floats(partial_out(row, first, quad), sums);
    for (std::int32_t begin = first + 1; begin <= last; begin += kChunksTogether) {
      float added[kChunksTogether][4];
      PartialSum own[kChunksTogether];
      GR_UNROLL
      for (int k = 0; k < kChunksTogether; ++k) {
        if (begin + k > last) continue;
        own[k] = {partial_sum(row, begin + k)[0], partial_sum(row, begin + k)[1]};
        read_floats(partial_out(row, begin + k, quad), added[k]);
      }
      GR_UNROLL
      for (int k = 0; k < kChunksTogether; ++k) {
        if (begin + k > last) continue;
        const MergeFactors factors = merge_chunk(total, own[k]);
        GR_UNROLL
        for (int i = 0; i < 4; ++i) {
          sums[i] = std::fma(factors.added, added[k][i], sums[i] * factors.before);
        }
      }
    }
    store_out(row, quad, final_scale(shared.sinks[row], total), sums);
  }
};

}  // namespace glimprouter::device
