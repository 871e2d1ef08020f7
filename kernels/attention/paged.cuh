// Attention of a few query tokens over pages, read in place. A block takes one chunk of the context
// (attention_task.hpp) for up to kRows query rows that share a KV head; the last block that is done
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

static_assert(kAttentionLanes == 16, "four threads hold the virtual lanes of a score");

template <int kRows>
struct AttentionShared {
  alignas(16) float queries[kRows][kMaxDeviceHeadDim];  // multiplied by the scale
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

  GR_DEVICE void load_queries(AttentionShared<kRows>& shared) const {
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
      shared.queries[row][element] = value;
      if (element == 0 && row < group_.count) {
        shared.sinks[row] = sink_of(arguments_.sinks, query_row(row).head);
        shared.seen[row] = keys_seen(row);
      }
    }
  }

  // Four threads a token: each holds four of the 16 virtual lanes, for every row.
  template <DataType kType>
  GR_DEVICE void score_chunk(std::int32_t chunk, AttentionShared<kRows>& shared) const {
    const ChunkRange seen = range(chunk, {shared.seen[0].first, shared.seen[group_.count - 1].end});
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
          shared.rows[row].scores[score_place(token)] = score;
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
          page_address(chunk, page) + layer_.value_offset +
          group_.kv_head * layer_.value_head_stride +
          (tokens.begin - page * page_size) * narrow(layer_.value_token_stride) +
          quad * static_cast<std::int32_t>(sizeof(RawQuad<kType>));
      const float rescale = weights.rescale[page];
      GR_UNROLL
      for (int i = 0; i < 4; ++i) sums[i] = sums[i] * rescale;
      add_page<kType>(values, tokens, weights, sums);
    }
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
                           const AttentionShared<kRows>& shared) const {
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

 private:
  static constexpr std::int32_t kThreads = kRows * static_cast<std::int32_t>(kWarpSize);
  // What is on its way at once, per thread: quads of keys, chunks of a merge.
  static constexpr int kKeysTogether = 8;
  static constexpr int kChunksTogether = 4;

  // A token of one head is small (kMaxDeviceHeadDim): half the registers.
  GR_DEVICE static std::int32_t narrow(std::int64_t stride) {
    return static_cast<std::int32_t>(stride);
  }

  GR_DEVICE static std::byte* address(const DeviceHeads& heads, const QueryRow& query) {
    return heads.data + query.token * heads.token_stride + query.head * heads.head_stride;
  }

  GR_DEVICE static void read_floats(const float* source, float (&values)[4]) {
    const Vec16 raw = load16(source);
    GR_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = std::bit_cast<float>(raw.word[i]);
  }

  // Products of a key with every row, [rows, the thread's four lanes].
  template <DataType kType>
  GR_DEVICE void add_products(std::int32_t chunk, std::int32_t token, std::int32_t part,
                              const AttentionShared<kRows>& shared,
                              float (&lanes)[kRows][4]) const {
    const std::int32_t page = token / layer_.page_size;
    const std::byte* key = page_address(chunk, page) + layer_.key_offset +
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
          read_floats(&shared.queries[row][i], query);
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
        add_value(raw[k], weights.scores[score_place(token + k)], sums);
      }
      values += kTokensTogether * stride;
    }
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
};

// Scores, weights and weighted values of one chunk. They go to `out` when the group has no other
// chunk, else to the workspace.
template <int kRows, DataType kType>
GR_DEVICE void attend_chunk(const ChunkAttention<kRows>& attention, std::int32_t chunk,
                            const AttentionArguments& arguments, AttentionShared<kRows>& shared) {
  const RowGroup& group = attention.group();
  const auto warp = static_cast<std::int32_t>(threadIdx.x / kWarpSize);
  attention.template score_chunk<kType>(chunk, shared);
  __syncthreads();
  if (warp < group.count) {
    const ChunkRange seen = attention.range(chunk, shared.seen[warp]);
    if (seen.begin < seen.end) {
      const PartialSum sum =
          weigh_row(shared.rows[warp], seen, arguments.pages.layer.page_size, arguments.softcap);
      if (threadIdx.x % kWarpSize == 0) {
        shared.sums[warp] = sum;
        if (group.chunks > 1) {
          float* const target = attention.partial_sum(warp, chunk);
          target[0] = sum.maximum;
          target[1] = sum.sum;
        }
      }
    }
  }
  __syncthreads();
  const std::int32_t quads = arguments.pages.layer.value_dim / 4;
  for (auto item = static_cast<std::int32_t>(threadIdx.x); item < group.count * quads;
       item += kRows * static_cast<std::int32_t>(kWarpSize)) {
    const std::int32_t row = item / quads;
    const std::int32_t quad = item - row * quads;
    const ChunkRange seen = attention.range(chunk, shared.seen[row]);
    if (seen.begin >= seen.end) continue;
    float sums[4] = {};
    attention.template add_values<kType>(chunk, seen, quad, shared.rows[row], sums);
    if (group.chunks == 1) {
      attention.store_out(row, quad, final_scale(shared.sinks[row], shared.sums[row]), sums);
    } else {
      Vec16 raw;
      GR_UNROLL
      for (int i = 0; i < 4; ++i) raw.word[i] = std::bit_cast<std::uint32_t>(sums[i]);
      store16(attention.partial_out(row, chunk, quad), raw);
    }
  }
}

// grid: (row groups, chunks, KV heads). block: a warp a row. Sixteen warps share a
// processor: with more registers a warp has more on its way, but fewer of them do not fill the bus.
template <int kRows>
GR_KERNEL(kRows* static_cast<int>(kWarpSize), 16 / kRows)
void attention_kernel(const AttentionArguments arguments) {
  GR_SHARED(AttentionShared<kRows>, shared);
  wait_for_dependencies();
  const ChunkAttention<kRows> attention(arguments);
  const RowGroup& group = attention.group();
  const auto chunk = static_cast<std::int32_t>(blockIdx.y);
  if (group.count <= 0 || chunk >= group.chunks) return;
  attention.load_queries(shared);
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
  if (group.chunks == 1) return;
  __syncthreads();
  if (threadIdx.x == 0) {
    std::uint32_t* const ticket =
        arguments.workspace.tickets + std::int64_t{blockIdx.z} * gridDim.x + blockIdx.x;
    const auto last = static_cast<std::uint32_t>(group.chunks - 1);
    shared.last = ticket_increment(ticket, last) == last;
  }
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  const std::int32_t quads = arguments.pages.layer.value_dim / 4;
  for (auto item = static_cast<std::int32_t>(threadIdx.x); item < group.count * quads;
       item += kRows * static_cast<std::int32_t>(kWarpSize)) {
    attention.merge_row(item / quads, item % quads, shared);
  }
}

}  // namespace glimprouter::device
