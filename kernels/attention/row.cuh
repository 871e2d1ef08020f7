// One query row of attention over a chunk of the context: from scores to weights, by one warp, with
// a lane a page. The specification is that of csrc/cpu/attention_kernels-inl.hpp.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "arithmetic/numeric.hpp"
#include "cpu/attention_task.hpp"
#include "device/device_kv.hpp"
#include "kernels/base/device.cuh"
#include "kernels/base/elements.cuh"

namespace glimprouter::device {

static_assert(kAttentionChunkPages == static_cast<std::int32_t>(kWarpSize), "a lane a page");

// A gap every 32 scores lets lanes walk pages of 16 or 32 tokens without meeting in a bank.
inline constexpr std::int32_t kMostChunkTokens =
    kAttentionChunkTokens > kMaxDevicePageSize ? kAttentionChunkTokens : kMaxDevicePageSize;
inline constexpr std::int32_t kScorePlaces = kMostChunkTokens + kMostChunkTokens / 32;
GR_DEVICE std::int32_t score_place(std::int32_t token) { return token + token / 32; }

inline constexpr float kNoMaximum = std::bit_cast<float>(0xFF800000u);

// Where one row stands.
struct QueryRow {
  std::int64_t token;  // in the batch
  std::int32_t head;
};

// Keys of a sequence that a row sees.
struct KeyRange {
  std::int32_t first;
  std::int32_t end;
};

// Of one row, in shared memory.
struct AttentionRow {
  float scores[kScorePlaces];           // of a token, then its weight
  float maxima[kAttentionChunkPages];   // up to and with a page
  float rescale[kAttentionChunkPages];  // of what was summed before a page
};

// Maximum and sum of a row over one or several chunks.
struct PartialSum {
  float maximum;
  float sum;
};

// Tokens of a chunk, counted from its first one.
struct ChunkRange {
  std::int32_t begin;
  std::int32_t end;
};

// cap tanh(score / cap).
GR_DEVICE float capped(float score, float cap) {
  const float x = score / cap;
  const float e = exp_nonpositive(x < 0.0f ? 2.0f * x : -2.0f * x);
  const float magnitude = cap * ((1.0f - e) / (1.0f + e));
  return score < 0.0f ? -magnitude : magnitude;
}

GR_DEVICE float larger_of(float best, float x) { return x > best ? x : best; }

// The page's tokens that the row sees.
GR_DEVICE ChunkRange page_range(const ChunkRange& seen, std::int32_t page, std::int32_t page_size) {
  const std::int32_t begin = page * page_size;
  const std::int32_t end = begin + page_size;
  return {begin > seen.begin ? begin : seen.begin, end < seen.end ? end : seen.end};
}

// All lanes of a warp; `seen` is not empty. Leaves weights and factors in the row, and gives its
// maximum and sum.
GR_DEVICE PartialSum weigh_row(AttentionRow& row, const ChunkRange& seen, std::int32_t page_size,
                               float softcap) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x % kWarpSize);
  if (softcap > 0.0f) {
    for (std::int32_t token = seen.begin + lane; token < seen.end; token += kWarpSize) {
      float& score = row.scores[score_place(token)];
      score = capped(score, softcap);
    }
  }
  __syncwarp(kFullMask);
  const ChunkRange own = page_range(seen, lane, page_size);
  float maximum = kNoMaximum;
  GR_UNROLL_BY(8)
  for (std::int32_t token = own.begin; token < own.end; ++token) {
    maximum = larger_of(maximum, row.scores[score_place(token)]);
  }
  for (std::int32_t distance = 1; distance < static_cast<std::int32_t>(kWarpSize); distance *= 2) {
    const float before = __shfl_up_sync(kFullMask, maximum, static_cast<unsigned>(distance));
    if (lane >= distance) maximum = larger_of(maximum, before);
  }
  float before = __shfl_up_sync(kFullMask, maximum, 1u);
  if (lane == 0) before = kNoMaximum;
  const float rescale = exp_nonpositive(before - maximum);
  row.maxima[lane] = maximum;
  row.rescale[lane] = rescale;
  __syncwarp(kFullMask);
  for (std::int32_t token = seen.begin + lane; token < seen.end; token += kWarpSize) {
    float& score = row.scores[score_place(token)];
    score = exp_nonpositive(score - row.maxima[token / page_size]);
  }
  __syncwarp(kFullMask);
  float page_sum = 0.0f;
  GR_UNROLL_BY(8)
  for (std::int32_t token = own.begin; token < own.end; ++token) {
    page_sum += row.scores[score_place(token)];
  }
  const std::int32_t last = (seen.end - 1) / page_size;
  float sum = 0.0f;
  for (std::int32_t page = seen.begin / page_size; page <= last; ++page) {
    sum = sum * __shfl_sync(kFullMask, rescale, page) + __shfl_sync(kFullMask, page_sum, page);
  }
  return {__shfl_sync(kFullMask, maximum, last), sum};
}

// What is multiplied to the earlier chunks of a row, and to the next one, when they are merged.
struct MergeFactors {
  float before;
  float added;
};

GR_DEVICE MergeFactors merge_chunk(PartialSum& total, const PartialSum& chunk) {
  const float maximum = larger_of(total.maximum, chunk.maximum);
  const MergeFactors factors{exp_nonpositive(total.maximum - maximum),
                             exp_nonpositive(chunk.maximum - maximum)};
  total = {maximum, total.sum * factors.before + chunk.sum * factors.added};
  return factors;
}

GR_DEVICE float sink_of(const RowView& sinks, std::int32_t head) {
  if (sinks.data == nullptr) return kNoMaximum;
  const auto* const scores = static_cast<const std::byte*>(sinks.data);
  return read_element(scores + head * element_size(sinks.dtype), sinks.dtype);
}

// What a row's values are multiplied by in the end. A sink is merged as a last chunk without
// values; kNoMaximum, where there is none, changes no bit.
GR_DEVICE float final_scale(float sink, PartialSum total) {
  const MergeFactors factors = merge_chunk(total, {sink, 1.0f});
  return factors.before / total.sum;
}

}  // namespace glimprouter::device
