// The tables of decode passes at fixed addresses of a device, for what is captured once and
// replayed: a pass computes one new token of each of its sequences, and smaller ones are padded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "device/device_arena.hpp"
#include "glimprouter/page_pool.hpp"
#include "glimprouter/types/device_stream.hpp"
#include "glimprouter/types/kv_views.hpp"
#include "glimprouter/types/ragged_batch.hpp"

namespace glimprouter {

// What every pass has room for.
struct DecodeRoom {
  std::int32_t model = 0;
  std::int32_t sequences = 0;
  std::int32_t pages = 0;  // of each sequence
  std::int32_t heads = 0;  // query heads
};

// The memory is the caller's, on the pool's device, 8-byte words:
//   int64 ids [n], positions [n], slot_mapping [n], each column with room for an even number;
//   int32 block_table [n, pages], cu_seqlens [n + 1], seq_lens [n]; tickets of attention.
// Padding has id 0, position 0, slot -1 and one key, on the null page; what it gives is dropped.
//
// append() and attend() only launch kernels, whose grids depend on the room alone: fill() before a
// replay decides what they work on. Functions throw std::invalid_argument before anything has
// changed, std::runtime_error when the device refuses. Not thread-safe.
class DecodeTables {
 public:
  // Words that a room needs. Throws std::invalid_argument for a pool in host memory, or sizes that
  // make no sense.
  static std::int64_t words(const PagePool& pool, const DecodeRoom& room);

  // memory: words(pool, room) of zeros; it outlives this, and what was captured.
  DecodeTables(std::shared_ptr<PagePool> pool, const DecodeRoom& room, std::int64_t* memory);

  // The columns of a batch with one new token a sequence, padded; behind all earlier work on the
  // pool. Refused while a graph is captured.
  void fill(const RaggedBatch& batch, DeviceStream stream);

  // Keys and values [n, KV heads, head size] into the slot_mapping, in one layer.
  void append(std::int32_t layer, const HeadsView& keys, const HeadsView& values,
              DeviceStream stream);
  // scratch: floats [scratch_size()] of the device, 16-byte aligned, unused until the launch is
  // over.
  void attend(std::int32_t layer, const AttentionOptions& options, const HeadsView& queries,
              const HeadsView& out, float* scratch, DeviceStream stream);
  std::int64_t scratch_size() const;

  // Whether the layer reads another's keys and values: nothing is appended to it.
  bool shares(std::int32_t layer) const;
  // Whether its values lie within its keys: keys alone are appended to it.
  bool latent(std::int32_t layer) const;
  const PagePool& pool() const { return *pool_; }
  const DecodeRoom& room() const { return room_; }

 private:
  std::shared_ptr<PagePool> pool_;
  DeviceArena& arena_;  // of the pool
  DecodeRoom room_;
  std::int64_t* memory_;
  DeviceTables tables_;
  std::uint32_t* tickets_;
  std::vector<std::int64_t> packed_;  // on the host
};

}  // namespace glimprouter
