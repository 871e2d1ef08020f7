// The arena of a page pool in the memory of a device, and what is done with its pages there. Work
// is enqueued on the caller's stream, after all earlier work on the arena, whatever its stream was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "device/device_backend.hpp"
#include "device/device_kv.hpp"
#include "glimprouter/kv_ops.hpp"
#include "glimprouter/ragged_batch.hpp"

namespace glimprouter {

// Columns of a batch in device memory, and what the host has to know of them for a launch.
struct DeviceTables {
  const std::int64_t* slot_mapping = nullptr;  // [tokens]
  const PageId* block_table = nullptr;         // [sequences, table_width]
  const std::int32_t* cu_seqlens = nullptr;    // [sequences + 1]
  const std::int32_t* seq_lens = nullptr;      // [sequences]
  std::int32_t table_width = 0;
  std::int32_t sequences = 0;
  std::int64_t tokens = 0;
  std::int32_t most_tokens = 0;  // of one sequence, or more
  std::int32_t most_keys = 0;    // of one sequence, or more
};

// Functions throw std::invalid_argument before anything has changed, std::runtime_error when the
// device refuses. Not thread-safe.
//
// While a graph is captured, only kernels are launched: what needs memory or tables that are not on
// the device yet is refused (std::runtime_error) and changes nothing. stage() brings them there.
// What is not captured and needs more memory than there is moves it: graphs from before are void.
class DeviceArena {
 public:
  // Zeros. Throws std::runtime_error when the device has not as much memory.
  DeviceArena(const Device& device, std::size_t bytes);
  ~DeviceArena();
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;

  const Device& device() const { return device_; }
  std::byte* data() const { return memory_.as<std::byte>(); }

  // Uploads the batch's tables and takes the memory of its attention with so many query heads.
  void stage(const KvLayout& layout, const RaggedBatch& batch, std::int32_t heads,
             std::int32_t window, DeviceStream stream);

  void append(const KvLayout& layout, const LayerRange& layers, const RaggedBatch& batch,
              const HeadsView& keys, const HeadsView& values, DeviceStream stream);
  void append(const KvLayout& layout, const LayerRange& layers, const DeviceTables& tables,
              const HeadsView& keys, const HeadsView& values, DeviceStream stream);
  void gather(const KvLayout& layout, const LayerRange& layers, std::span<const PageId> pages,
              const HeadsView& keys, const HeadsView& values, DeviceStream stream);
  void attend(const KvLayout& layout, std::int32_t layer, const RaggedBatch& batch,
              const AttentionOptions& options, const HeadsView& queries, const HeadsView& out,
              DeviceStream stream);
  // The workspace is for attention without a window.
  void attend(const KvLayout& layout, std::int32_t layer, const DeviceTables& tables,
              const AttentionOptions& options, const HeadsView& queries, const HeadsView& out,
              const AttentionWorkspace& workspace, DeviceStream stream);

  // Fills memory of the caller's on this device.
  void write(void* target, std::span<const std::byte> source, DeviceStream stream);

  // Tokens of one sequence from pages of one layout to those of another with the same layers, heads
  // and head size, cast to its type. The pages are those from the sequence's first token on.
  void cast_copy(const KvLayout& from, std::span<const PageId> source, const KvLayout& to,
                 std::span<const PageId> target, std::int64_t first, std::int64_t tokens);
  // One page to another.
  void copy_page(const KvLayout& layout, PageId from, PageId to);
  // Every byte of a page: for tests.
  void fill_page(const KvLayout& layout, PageId page, int byte);
  // Pages to host memory, side by side, and back. Return when the bytes have arrived.
  void offload(const KvLayout& layout, std::span<const PageId> pages, std::byte* target);
  void fetch(const KvLayout& layout, std::span<const PageId> pages, const std::byte* source);

 private:
  void follow(DeviceStream stream);
  void refuse_capture(DeviceStream stream) const;
  void reserve(DeviceMemory& memory, std::size_t bytes, DeviceStream stream);
  DeviceTables upload(const RaggedBatch& batch, DeviceStream stream);
  const PageId* upload(std::span<const PageId> pages, DeviceStream stream);
  AttentionWorkspace workspace(const AttentionArguments& arguments, std::int64_t tokens,
                               DeviceStream stream);
  // Between pages and pinned memory, where they lie side by side.
  void transfer(const KvLayout& layout, std::span<const PageId> pages, std::byte* pinned,
                bool to_host);
  std::size_t pages_together(const KvLayout& layout, std::size_t pages);

  Device device_;
  DeviceMemory memory_;
  DeviceStream stream_ = nullptr;  // of the last work
  DeviceMemory tables_;
  std::uint64_t uploaded_ = 0;  // the batch whose columns are in tables_
  DeviceMemory page_list_;
  DeviceMemory partials_;
  DeviceMemory tickets_;
  std::optional<PinnedMemory> staging_;
  std::size_t staging_bytes_ = 0;
};

}  // namespace glimprouter
