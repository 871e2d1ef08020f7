// Which query rows a block of attention takes: a group of neighbouring rows of one sequence.
#pragma once

#include <cstdint>

#include "device/device_kv.hpp"
#include "kernels/base/device.cuh"

namespace glimprouter::device {

// The rows of a block: (token, query head) pairs of one sequence and KV head.
struct RowGroup {
  std::int32_t sequence;
  std::int32_t kv_head;
  std::int32_t first_row;     // of the pairs
  std::int32_t count;         // <= 0: the sequence has no such rows
  std::int32_t first_token;   // of the sequence, in the batch
  std::int32_t first_length;  // of the sequence before that token
  std::int32_t first_chunk;   // that a row of the group sees
  std::int32_t chunks;
};

// The last sequence whose groups do not begin behind this one: those that have none begin where the
// next one does. A warp looks at 32 at a time.
GR_DEVICE std::int32_t sequence_of_group(const AttentionArguments& arguments, std::int32_t index) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x % kWarpSize);
  std::int32_t begun = 0;
  for (std::int32_t base = 0; base < arguments.sequences;
       base += static_cast<std::int32_t>(kWarpSize)) {
    const std::int32_t own = base + lane;
    const bool begins = own < arguments.sequences &&
                        first_row_group(arguments, own, arguments.cu_seqlens[own]) <= index;
    begun += static_cast<std::int32_t>(__popc(__ballot_sync(kFullMask, begins)));
  }
  return begun - 1;
}

// The group of the block, its chunks aside.
template <int kRows>
GR_DEVICE RowGroup row_group(const AttentionArguments& arguments) {
  const auto index = static_cast<std::int32_t>(blockIdx.x);
  RowGroup group{};
  group.sequence = one_group_a_sequence(arguments) ? index : sequence_of_group(arguments, index);
  group.kv_head = static_cast<std::int32_t>(blockIdx.z);
  group.first_token = arguments.cu_seqlens[group.sequence];
  const std::int32_t tokens = arguments.cu_seqlens[group.sequence + 1] - group.first_token;
  const auto first =
      static_cast<std::int32_t>(first_row_group(arguments, group.sequence, group.first_token));
  group.first_row = (index - first) * kRows;
  group.first_length = arguments.seq_lens[group.sequence] - tokens;
  const std::int32_t left =
      tokens * (arguments.heads / arguments.pages.layer.num_kv_heads) - group.first_row;
  group.count = left < kRows ? left : kRows;
  return group;
}

}  // namespace glimprouter::device
