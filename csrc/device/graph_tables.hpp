// The tables of passes at fixed addresses of a device, for what is captured once and replayed: a
// smaller pass is padded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "device/device_arena.hpp"
#include "glimprouter/page_pool.hpp"
#include "glimprouter/types/device_stream.hpp"
#include "glimprouter/types/kv_views.hpp"
#include "glimprouter/types/ragged_batch.hpp"

namespace glimprouter {

// What every pass has room for.
struct GraphRoom {
  std::int32_t model = 0;
  std::int32_t tokens = 0;  // of all sequences: T
  std::int32_t sequences = 0;
  std::int32_t pages = 0;        // of each sequence
  std::int32_t wanted = 0;       // tokens whose logits are wanted
  std::int32_t most_tokens = 0;  // of one sequence; 1: a decode pass
  std::int32_t heads = 0;        // query heads
};

// The memory is the caller's, on the pool's device, 8-byte words:
//   int64 ids [T], positions [T], slot_mapping [T], wanted [wanted], each column with room for an
//   even number;
//   int32 block_table [sequences, pages], cu_seqlens [sequences + 1], seq_lens [sequences];
//   tickets of attention.
// Tokens of padding have id 0, position 0 and slot -1, and belong to sequences behind those of the
// batch, which have nothing but null pages; what they give is dropped. Padded places of `wanted`
// name token 0.
//
// append() and attend() only launch kernels, whose grids depend on the room alone: fill() before a
// replay decides what they work on. Functions throw std::invalid_argument before anything has
// changed, std::runtime_error when the device refuses. Not thread-safe.
class GraphTables {
 public:
  // Words that a room needs. Throws std::invalid_argument for a pool in host memory, or sizes that
  // make no sense.
  static std::int64_t words(const PagePool& pool, const GraphRoom& room);

  // memory: words(pool, room) of zeros; it outlives this, and what was captured.
  GraphTables(std::shared_ptr<PagePool> pool, const GraphRoom& room, std::int64_t* memory);

  // The columns of a batch, padded; behind all earlier work on the pool. wanted: tokens of the
  // batch. Refused while a graph is captured.
  void fill(const RaggedBatch& batch, std::span<const std::int32_t> wanted, DeviceStream stream);

  // Keys and values [T, KV heads, head size] into the slot_mapping, in one layer.
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
  const GraphRoom& room() const { return room_; }

 private:
  // Throws for what does not fit.
  void check(const RaggedBatch& batch, std::span<const std::int32_t> wanted) const;
  void fill_narrow(const RaggedBatch& batch, std::int32_t* narrow) const;
  // Tokens that a sequence of padding can have.
  std::int64_t padding() const;

  std::shared_ptr<PagePool> pool_;
  DeviceArena& arena_;  // of the pool
  GraphRoom room_;
  std::int64_t* memory_;
  DeviceTables tables_;
  std::uint32_t* tickets_;
  std::vector<std::int64_t> packed_;  // on the host
};

}  // namespace glimprouter
