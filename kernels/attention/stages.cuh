// Which keys and values attention copies into shared memory ahead of their use, and how they lie
// there: a ring of stages, each some neighbouring tokens of one head, a row a token.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/device_kv.hpp"
#include "kernels/attention/chunk.cuh"
#include "kernels/base/device.cuh"

namespace glimprouter::device {

inline constexpr std::int32_t kCopyBytes = 16;  // of one asynchronous copy
inline constexpr std::int32_t kMaxStagedHeadDim = 256;
// Four threads score a token for four rows: the tokens of four warps.
inline constexpr std::int32_t kMostStageTokens = 32;
inline constexpr std::int32_t kTokensAWarp = 8;
// Of as many tokens with heads of 128 in 16 bits; others have fewer tokens a stage.
inline constexpr std::int32_t kStageBytes = kMostStageTokens * (128 * 2 + kCopyBytes);
// What fits beside queries and scores in the 48 KB that a block may have without asking.
template <int kRows>
inline constexpr int kStages = kRows == 4 ? 4 : 3;

// From a token of a stage to the next: an odd multiple of 16 bytes, since heads are multiples of 16
// elements. So what lanes read of neighbouring tokens at the same place lies in different banks.
GR_HOST_DEVICE inline std::int32_t staged_row_bytes(const LayerLayout& layer) {
  const std::int32_t longest = layer.head_dim > layer.value_dim ? layer.head_dim : layer.value_dim;
  return longest * static_cast<std::int32_t>(element_size(layer.dtype)) + kCopyBytes;
}
GR_HOST_DEVICE inline std::int32_t stage_tokens(const LayerLayout& layer) {
  const std::int32_t fitting = kStageBytes / staged_row_bytes(layer) / kTokensAWarp * kTokensAWarp;
  return fitting < kMostStageTokens ? fitting : kMostStageTokens;
}

// The one place that decides whether attention copies ahead: where it is asked to, with heads that
// leave room for eight tokens a stage, and rows of keys and values that begin at multiples of 16
// bytes wherever they lie in a page, of whatever size. What is left (latent vectors of 576
// elements) is read in place (direct.cuh).
inline bool copies_ahead(const AttentionArguments& arguments) {
  const LayerLayout& layer = arguments.pages.layer;
  const std::int64_t places = layer.key_offset | layer.key_head_stride | layer.key_token_stride |
                              layer.value_offset | layer.value_head_stride |
                              layer.value_token_stride;
  return arguments.loads == AttentionLoads::kStaged && layer.head_dim <= kMaxStagedHeadDim &&
         layer.value_dim <= kMaxStagedHeadDim && places % kCopyBytes == 0;
}

// Divides numbers below 256 by a page size without a division (which takes some 20 instructions).
class PageOfToken {
 public:
  GR_HOST_DEVICE explicit PageOfToken(std::int32_t page_size) : factor_(65536 / page_size + 1) {}
  GR_HOST_DEVICE std::int32_t operator()(std::int32_t token) const { return token * factor_ >> 16; }

 private:
  std::int32_t factor_;
};
static_assert(kMostChunkTokens <= 256, "PageOfToken is exact for tokens of a chunk");

template <int kRows>
struct StagedShared {
  alignas(16) float queries[kRows][kMaxStagedHeadDim];
  alignas(16) std::byte ring[kStages<kRows>][kStageBytes];
  const std::byte* pages[kAttentionChunkPages];
  ChunkShared<kRows> chunk;
};

}  // namespace glimprouter::device
