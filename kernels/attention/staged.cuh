// Attention of a few query tokens over pages whose keys and values are copied into shared memory
// while those before them are computed with: the keys of a chunk and then its values, one stage
// behind the other (stages.cuh). All rows of the block share what was copied. Every sum has the
// order of direct.cuh, so results have the same bits.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "device/device_kv.hpp"
#include "kernels/attention/chunk.cuh"
#include "kernels/attention/stages.cuh"
#include "kernels/base/device.cuh"
#include "kernels/base/elements.cuh"

namespace glimprouter::device {

template <int kRows>
class StagedAttention : public ChunkAttention<kRows> {
 public:
  using Shared = StagedShared<kRows>;

  GR_DEVICE explicit StagedAttention(const AttentionArguments& arguments)
      : ChunkAttention<kRows>(arguments),
        page_of_(layer_.page_size),
        row_bytes_(staged_row_bytes(layer_)),
        stage_tokens_(stage_tokens(layer_)) {}

  // Scores, weights and weighted values of one chunk. What does not depend on the type of the
  // elements is there once: a block runs all of it once, from instruction caches that are cold.
  GR_DEVICE void attend(std::int32_t chunk, Shared& shared) {
    begin(chunk, shared);
    switch (layer_.dtype) {
      case DataType::kFloat32:
        score_chunk<DataType::kFloat32>(shared);
        break;
      case DataType::kBFloat16:
        score_chunk<DataType::kBFloat16>(shared);
        break;
      case DataType::kFloat16:
        score_chunk<DataType::kFloat16>(shared);
        break;
    }
    __syncthreads();
    const auto warp = static_cast<std::int32_t>(threadIdx.x / kWarpSize);
    if (warp < group_.count) this->weigh(warp, chunk, shared.chunk);
    const Item items[kItems] = {item(0, chunk, shared), item(1, chunk, shared)};
    float sums[kItems][4] = {};
    switch (layer_.dtype) {
      case DataType::kFloat32:
        add_chunk<DataType::kFloat32>(items, shared, sums);
        break;
      case DataType::kBFloat16:
        add_chunk<DataType::kBFloat16>(items, shared, sums);
        break;
      case DataType::kFloat16:
        add_chunk<DataType::kFloat16>(items, shared, sums);
        break;
    }
    GR_UNROLL
    for (int i = 0; i < kItems; ++i) {
      if (items[i].seen.begin >= items[i].seen.end) continue;
      this->leave(items[i].row, chunk, items[i].quad, shared.chunk, sums[i]);
    }
  }

 private:
  using Base = ChunkAttention<kRows>;
  using Base::group_;
  using Base::kThreads;
  using Base::layer_;
  using Base::narrow;
  static constexpr int kRing = kStages<kRows>;
  static constexpr std::int32_t kRowsTogether = 4;  // that a thread scores
  static constexpr int kItems = kMaxStagedHeadDim / 4 * kRows / kThreads;
  static_assert(kItems == 2);

  // Four neighbouring elements of a row's values, which one thread adds up.
  struct Item {
    std::int32_t row;
    std::int32_t quad;
    ChunkRange seen;  // empty: there is no such item
  };

  // Tokens of the chunk that a stage has.
  GR_DEVICE ChunkRange tokens_of(std::int32_t stage) const {
    const std::int32_t part = stage < stages_ ? stage : stage - stages_;
    const std::int32_t begin = seen_.begin + part * stage_tokens_;
    const std::int32_t end = begin + stage_tokens_;
    return {begin, end < seen_.end ? end : seen_.end};
  }
  GR_DEVICE static std::byte* place_of(std::int32_t stage, Shared& shared) {
    return shared.ring[stage % kRing];
  }

  // What is the same for all stages, the first of which are on their way when the queries are read.
  GR_DEVICE void begin(std::int32_t chunk, Shared& shared) {
    const auto thread = static_cast<std::int32_t>(threadIdx.x);
    seen_ = this->range(chunk, {this->keys_seen(0).first, this->keys_seen(group_.count - 1).end});
    stages_ = (seen_.end - seen_.begin + stage_tokens_ - 1) / stage_tokens_;
    const std::int32_t cells = row_bytes_ / kCopyBytes - 1;
    copied_tokens_ = kThreads / cells;
    first_copied_ = thread / cells;
    cell_ = thread - first_copied_ * cells;
    if (first_copied_ >= copied_tokens_) first_copied_ = kMostStageTokens;  // none
    const std::int32_t last_page = page_of_(seen_.end - 1);
    if (thread >= page_of_(seen_.begin) && thread <= last_page) {
      shared.pages[thread] = this->page_address(chunk, thread);
    }
    __syncthreads();
    GR_NO_UNROLL
    for (int stage = 0; stage < kRing - 1; ++stage) copy_ahead(stage, shared);
    this->load_queries(shared.queries, shared.chunk);
  }

  // Behind it the stage is there, for all threads; the one that takes the place of the stage before
  // it is on its way.
  GR_DEVICE void next(std::int32_t stage, Shared& shared) const {
    wait_copies<kRing - 2>();
    __syncthreads();
    copy_ahead(stage + kRing - 1, shared);
  }

  // A thread copies the same 16 bytes of every so many tokens. A group for each stage, also for
  // those that there are not, so that a wait counts stages.
  GR_DEVICE void copy_ahead(std::int32_t stage, Shared& shared) const {
    const bool values = stage >= stages_;
    const std::int32_t size = values ? layer_.value_dim : layer_.head_dim;
    if (stage < 2 * stages_ &&
        cell_ * kCopyBytes < size * static_cast<std::int32_t>(element_size(layer_.dtype))) {
      const std::int64_t offset =
          (values ? layer_.value_offset + group_.kv_head * layer_.value_head_stride
                  : layer_.key_offset + group_.kv_head * layer_.key_head_stride) +
          cell_ * kCopyBytes;
      const std::int32_t stride =
          narrow(values ? layer_.value_token_stride : layer_.key_token_stride);
      const ChunkRange tokens = tokens_of(stage);
      std::byte* const target = place_of(stage, shared) + cell_ * kCopyBytes;
      for (std::int32_t i = first_copied_; i < tokens.end - tokens.begin; i += copied_tokens_) {
        const std::int32_t page = page_of_(tokens.begin + i);
        const std::int32_t place = tokens.begin + i - page * layer_.page_size;
        copy16_async(target + i * row_bytes_, shared.pages[page] + offset + place * stride);
      }
    }
    commit_copies();
  }

  template <DataType kType>
  GR_DEVICE void score_chunk(Shared& shared) const {
    for (std::int32_t stage = 0; stage < stages_; ++stage) {
      next(stage, shared);
      score_stage<kType>(stage, shared);
    }
  }

  template <DataType kType>
  GR_DEVICE void add_chunk(const Item (&items)[kItems], Shared& shared,
                           float (&sums)[kItems][4]) const {
    for (std::int32_t stage = stages_; stage < 2 * stages_; ++stage) {
      next(stage, shared);
      GR_UNROLL
      for (int i = 0; i < kItems; ++i) add_stage<kType>(stage, items[i], shared, sums[i]);
    }
  }

  // Four threads a token, eight lanes apart: each holds four of the 16 virtual lanes, for four
  // rows.
  template <DataType kType>
  GR_DEVICE void score_stage(std::int32_t stage, Shared& shared) const {
    const auto warp = static_cast<std::int32_t>(threadIdx.x / kWarpSize);
    const auto lane = static_cast<std::int32_t>(threadIdx.x % kWarpSize);
    const std::int32_t part = lane / kTokensAWarp;
    const std::int32_t first_row = warp / kRowsTogether * kRowsTogether;
    const ChunkRange tokens = tokens_of(stage);
    const std::int32_t count = tokens.end - tokens.begin;
    const std::int32_t first = warp % kRowsTogether * kTokensAWarp;
    if (first >= count || first_row >= group_.count) return;
    const std::int32_t own = first + lane % kTokensAWarp;
    const std::byte* key = place_of(stage, shared) + (own < count ? own : first) * row_bytes_ +
                           part * static_cast<std::int32_t>(sizeof(RawQuad<kType>));
    float lanes[kRowsTogether][4] = {};
    GR_UNROLL_BY(4)
    for (std::int32_t i = part * 4; i < layer_.head_dim; i += kAttentionLanes) {
      float elements[4];
      floats_of(read_quad<kType>(key), elements);
      key += 4 * sizeof(RawQuad<kType>);
      GR_UNROLL
      for (int row = 0; row < kRowsTogether; ++row) {
        float query[4];
        this->read_floats(&shared.queries[first_row + row][i], query);
        GR_UNROLL
        for (int k = 0; k < 4; ++k) lanes[row][k] = std::fma(query[k], elements[k], lanes[row][k]);
      }
    }
    const float score = score_of_own_row(lanes, part);
    if (own < count && first_row + part < group_.count) {
      shared.chunk.rows[first_row + part].scores[score_place(tokens.begin + own)] = score;
    }
  }

  // The 16 virtual lanes in a tree of halves: 8 and 4 apart between threads, 2 and 1 within. At
  // each step a thread gives away half of its rows, until it has the one of its own part.
  GR_DEVICE static float score_of_own_row(const float (&lanes)[kRowsTogether][4],
                                          std::int32_t part) {
    const bool upper = part >= 2;
    const bool odd = part % 2 != 0;
    float halves[2][4];
    GR_UNROLL
    for (int row = 0; row < 2; ++row) {
      GR_UNROLL
      for (int k = 0; k < 4; ++k) {
        const float given = upper ? lanes[row][k] : lanes[row + 2][k];
        const float kept = upper ? lanes[row + 2][k] : lanes[row][k];
        halves[row][k] = kept + __shfl_xor_sync(kFullMask, given, 2 * kTokensAWarp);
      }
    }
    float sums[4];
    GR_UNROLL
    for (int k = 0; k < 4; ++k) {
      const float given = odd ? halves[0][k] : halves[1][k];
      const float kept = odd ? halves[1][k] : halves[0][k];
      sums[k] = kept + __shfl_xor_sync(kFullMask, given, kTokensAWarp);
    }
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
  }

  GR_DEVICE Item item(int number, std::int32_t chunk, const Shared& shared) const {
    const std::int32_t index = static_cast<std::int32_t>(threadIdx.x) + number * kThreads;
    const std::int32_t quads = layer_.value_dim / 4;
    const std::int32_t row = index / quads;
    if (row >= group_.count) return {};
    return {row, index - row * quads, this->range(chunk, shared.chunk.seen[row])};
  }

  // Adds the weighted values of a stage's tokens that the item's row sees.
  template <DataType kType>
  GR_DEVICE void add_stage(std::int32_t stage, const Item& item, Shared& shared,
                           float (&sums)[4]) const {
    const ChunkRange tokens = tokens_of(stage);
    const std::int32_t end = tokens.end < item.seen.end ? tokens.end : item.seen.end;
    std::int32_t token = tokens.begin > item.seen.begin ? tokens.begin : item.seen.begin;
    const AttentionRow& weights = shared.chunk.rows[item.row];
    const std::byte* values = place_of(stage, shared) + (token - tokens.begin) * row_bytes_ +
                              item.quad * static_cast<std::int32_t>(sizeof(RawQuad<kType>));
    while (token < end) {
      const std::int32_t page = page_of_(token);
      const ChunkRange own = page_range(item.seen, page, layer_.page_size);
      if (token == own.begin) {
        const float rescale = weights.rescale[page];
        GR_UNROLL
        for (int i = 0; i < 4; ++i) sums[i] = sums[i] * rescale;
      }
      // Weights lie side by side up to the next gap (score_place).
      const std::int32_t gap = token / 32 * 32 + 32;
      const std::int32_t page_end = own.end < end ? own.end : end;
      const std::int32_t count = (page_end < gap ? page_end : gap) - token;
      const float* const weight = weights.scores + score_place(token);
      GR_UNROLL_BY(8)
      for (std::int32_t i = 0; i < count; ++i) {
        this->add_value(read_quad<kType>(values), weight[i], sums);
        values += row_bytes_;
      }
      token += count;
    }
  }

  PageOfToken page_of_;
  std::int32_t row_bytes_;
  std::int32_t stage_tokens_;
  std::int32_t stages_ = 0;         // of the keys; as many of the values
  ChunkRange seen_{};               // tokens of the chunk that a row of the group sees
  std::int32_t cell_ = 0;           // which 16 bytes of a token the thread copies,
  std::int32_t first_copied_ = 0;   // from which token of a stage on,
  std::int32_t copied_tokens_ = 0;  // and of every so many
};

// Grid and block are those of attention_kernel.
template <int kRows>
GR_KERNEL(kRows* static_cast<int>(kWarpSize), 16 / kRows)
void staged_attention_kernel(const AttentionArguments arguments) {
  launch_dependents();
  GR_SHARED(StagedShared<kRows>, shared);
  wait_for_dependencies();
  StagedAttention<kRows> attention(arguments);
  const RowGroup& group = attention.group();
  const auto chunk = static_cast<std::int32_t>(blockIdx.y);
  if (group.count <= 0 || chunk >= group.chunks) return;
  attention.attend(chunk, shared);
  attention.finish(shared.chunk);
}

}  // namespace glimprouter::device
