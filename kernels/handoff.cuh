// The hand-off to a model, packed on the device: the columns of a RaggedBatch from tables of the
// sequences, in one launch.
#pragma once

#include <cstdint>

#include "device.cuh"
#include "glimprouter/device_kv.hpp"

namespace glimprouter::device {

inline constexpr std::uint32_t kHandoffThreads = 128;

struct HandoffShared {
  std::uint32_t before;  // new tokens of the sequences ahead of the block's own
};

GR_DEVICE std::int32_t length_of(const SequenceTables& tables, std::int32_t sequence) {
  return tables.prompt_lengths[sequence] + tables.generated_lengths[sequence];
}

// Id of the model at a position; -1 where it has none.
GR_DEVICE std::int32_t id_at(const SequenceTables& tables, std::int32_t sequence,
                             std::int32_t position) {
  const std::int32_t prompt = tables.prompt_lengths[sequence];
  if (position < prompt) return tables.prompts[sequence * tables.prompt_stride + position];
  const std::int32_t id = tables.generated[sequence * tables.generated_stride + position - prompt];
  if (tables.vocabulary_map == nullptr) return id;
  return id >= 0 && id < tables.vocabulary ? tables.vocabulary_map[id] : -1;
}

// The block's own sequence: its tokens from `begin` of the batch on.
GR_DEVICE void pack_sequence(const HandoffArguments& arguments, std::uint32_t row,
                             std::int32_t begin) {
  const SequenceTables& tables = arguments.tables;
  const std::int32_t sequence = arguments.sequences[row];
  const std::int32_t committed = tables.committed[sequence];
  const std::int32_t length = length_of(tables, sequence);
  const PageId* const pages = tables.pages + sequence * tables.page_stride;
  for (std::int32_t position = committed + static_cast<std::int32_t>(threadIdx.x);
       position < length; position += kHandoffThreads) {
    const std::int64_t at = static_cast<std::int64_t>(begin) + position - committed;
    if (at >= arguments.capacity) break;
    const std::int32_t id = id_at(tables, sequence, position);
    if (id < 0) atomic_add(arguments.unmapped, 1u);
    arguments.ids[at] = id < 0 ? 0 : id;
    arguments.positions[at] = position;
    const std::int32_t page = position / tables.page_tokens;
    arguments.slots[at] = static_cast<std::int64_t>(pages[page]) * tables.page_tokens + position -
                          page * tables.page_tokens;
  }
  const std::int32_t used = (length + tables.page_tokens - 1) / tables.page_tokens;
  for (auto page = static_cast<std::int32_t>(threadIdx.x); page < arguments.table_width;
       page += kHandoffThreads) {
    arguments.block_table[static_cast<std::int64_t>(row) * arguments.table_width + page] =
        page < used ? pages[page] : kNullPage;
  }
  if (threadIdx.x != 0) return;
  const std::int32_t end = begin + length - committed;
  if (row == 0) arguments.cu_seqlens[0] = 0;
  arguments.cu_seqlens[row + 1] = end;
  arguments.key_lengths[row] = length;
  arguments.last_rows[row] = end - 1;
}

// What is missing to the capacity.
GR_DEVICE void pad_tokens(const HandoffArguments& arguments, std::int64_t begin) {
  for (std::int64_t at = begin + threadIdx.x; at < arguments.capacity; at += kHandoffThreads) {
    arguments.ids[at] = 0;
    arguments.positions[at] = 0;
    arguments.slots[at] = -1;
  }
}

// grid: one block a sequence, and one more for the padding. A block finds its place in the batch by
// adding up the sequences before it: no block waits for another.
template <typename Arguments>
GR_KERNEL(kHandoffThreads)
void handoff_kernel(const Arguments arguments) {
  GR_SHARED(HandoffShared, shared);
  wait_for_dependencies();
  if (threadIdx.x == 0) shared.before = 0;
  __syncthreads();
  std::uint32_t before = 0;
  for (std::uint32_t row = threadIdx.x; row < blockIdx.x; row += kHandoffThreads) {
    const std::int32_t sequence = arguments.sequences[row];
    before += static_cast<std::uint32_t>(length_of(arguments.tables, sequence) -
                                         arguments.tables.committed[sequence]);
  }
  before = __reduce_add_sync(kFullMask, before);
  if (threadIdx.x % kWarpSize == 0) atomic_add_shared(&shared.before, before);
  __syncthreads();
  const auto begin = static_cast<std::int32_t>(shared.before);
  if (blockIdx.x < static_cast<std::uint32_t>(arguments.count)) {
    pack_sequence(arguments, blockIdx.x, begin);
  } else {
    if (arguments.count == 0 && threadIdx.x == 0) arguments.cu_seqlens[0] = 0;
    pad_tokens(arguments, begin);
  }
}

}  // namespace glimprouter::device
