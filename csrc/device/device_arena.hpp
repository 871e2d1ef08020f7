// The arena of a page pool in the memory of a device, and what is done with its pages there. Work
// is enqueued on the caller's stream, after all earlier work on the arena, whatever its stream was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "device/device_backend.hpp"
#include "device/device_kv.hpp"
#include "device/stream_scratch.hpp"
#include "glimprouter/types/arena.hpp"

namespace glimprouter {

// Columns of a batch in device memory, and what the host has to know of them for a launch.
struct DeviceTables {
  const std::int64_t* slot_mapping = nullptr;  // [tokens]
  const PageId* block_table = nullptr;         // [sequences, table_width]
  const std::int32_t* cu_seqlens = nullptr;    // [sequences + 1]
  const std::int32_t* seq_lens = nullptr;      // [sequences]
  std::int32_t table_width = 0;
  std::int32_t sequences = 0;
  std::int32_t tokens = 0;
  std::int32_t most_tokens = 0;  // of one sequence, or more
  std::int32_t most_keys = 0;    // of one sequence, or more
};

// While a graph is captured, only kernels are launched: what needs memory or tables that are not on
// the device yet is refused (std::runtime_error) and changes nothing. stage() brings them there.
// What is not captured and needs more memory than there is moves it: graphs from before are void.
class DeviceArena : public Arena {
 public:
  // Zeros. Throws std::runtime_error when the device has not as much memory.
  DeviceArena(const Device& device, std::size_t bytes);
  ~DeviceArena() override;

  const Device& device() const { return device_; }
  std::string name() const override { return device_.name(); }
  bool reaches(std::int32_t device_type, std::int32_t device_id) const override;
  std::byte* data() const override { return memory_.as<std::byte>(); }

  void append(const KvLayout& layout, const LayerRange& layers, const PageTables& tables,
              const HeadsView& keys, const HeadsView& values, DeviceStream stream) override;
  void gather(const SequencePages& source, const LayerRange& layers, const HeadsView& keys,
              const HeadsView& values, DeviceStream stream) override;
  void attend(const KvLayout& layout, std::int32_t layer, const PageTables& tables,
              const AttentionOptions& options, const HeadsView& queries, const HeadsView& out,
              DeviceStream stream) override;
  void stage(const KvLayout& layout, const PageTables& tables, std::int32_t heads,
             std::int32_t window, DeviceStream stream) override;
  void cast_copy(const SequencePages& source, const SequencePages& target, std::int32_t first,
                 std::int32_t count) override;
  void copy_page(const KvLayout& layout, PageId from, PageId to) override;
  void fill_page(const KvLayout& layout, PageId page, int byte) override;
  void read_pages(const SequencePages& source, std::byte* target) override;
  void write_pages(const SequencePages& target, const std::byte* source) override;

  // The same for tables that are on the device (graph_tables.hpp). The workspace is for attention
  // without a window or chunks.
  void append(const KvLayout& layout, const LayerRange& layers, const DeviceTables& tables,
              const HeadsView& keys, const HeadsView& values, DeviceStream stream);
  void attend(const KvLayout& layout, std::int32_t layer, const DeviceTables& tables,
              const AttentionOptions& options, const HeadsView& queries, const HeadsView& out,
              const AttentionWorkspace& workspace, DeviceStream stream);
  // Fills memory of the caller's on this device.
  void write(void* target, std::span<const std::byte> source, DeviceStream stream);

 private:
  DevicePages pages_of(const KvLayout& layout, const LayerRange& layers) const;
  void follow(DeviceStream stream);
  DeviceTables upload(const PageTables& tables, DeviceStream stream);
  const PageId* upload(std::span<const PageId> pages, DeviceStream stream);
  AttentionWorkspace workspace(const AttentionArguments& arguments, DeviceStream stream);
  // Between pages and pinned memory, where they lie side by side.
  void transfer(const SequencePages& pages, std::byte* pinned, bool to_host);
  std::size_t pages_together(const KvLayout& layout, std::size_t pages);

  Device device_;
  DeviceMemory memory_;
  DeviceStream stream_ = nullptr;  // of the last work
  StreamScratch tables_;
  std::uint64_t uploaded_ = 0;  // the batch whose columns are in tables_
  StreamScratch page_list_;
  StreamScratch partials_;
  StreamScratch tickets_;
  std::optional<PinnedMemory> staging_;
  std::size_t staging_bytes_ = 0;
};

// Makes arenas on this device.
ArenaFactory device_arena(const Device& device);

}  // namespace glimprouter
