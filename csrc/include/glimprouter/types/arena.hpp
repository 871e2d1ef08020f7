// The memory that a pool cuts in pages, and everything that is done with pages: one interface with
// an implementation for host memory and one for the memory of a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "glimprouter/kv_layout.hpp"
#include "glimprouter/types/device_stream.hpp"
#include "glimprouter/types/kv_views.hpp"
#include "glimprouter/types/page_tables.hpp"

namespace glimprouter {

// Pages of one sequence, from its first token on, and how they are laid out.
struct SequencePages {
  const KvLayout& layout;
  std::span<const PageId> pages;
};

// Nothing of what comes in is checked here but what one kind of memory alone asks for (the
// alignment of a device's tensors, say): callers are the operations of kv_ops.hpp, which check
// shapes, layers and tables, and the pool. Pages belong to the arena and to the layout.
//
// Work on a device is enqueued on `stream`, behind all earlier work on the arena; host memory has
// no streams, and its work is over on return. Functions throw std::invalid_argument before anything
// has changed, std::runtime_error when a device refuses. Not thread-safe.
class Arena {
 public:
  Arena() = default;
  virtual ~Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // "cpu", or a device as "cuda:0".
  virtual std::string name() const = 0;
  // Whether a tensor on this device, by DLPack's type and number, is where the pages are.
  virtual bool reaches(std::int32_t device_type, std::int32_t device_id) const = 0;
  // Where page 0 begins, in the memory of the device.
  virtual std::byte* data() const = 0;

  // Keys and values [layers, T, KV heads, head_dim] into the tables' slots; of latent layers keys
  // alone.
  virtual void append(const KvLayout& layout, const LayerRange& layers, const PageTables& tables,
                      const HeadsView& keys, const HeadsView& values, DeviceStream stream) = 0;
  // The first keys.tokens tokens of a sequence's pages into the views.
  virtual void gather(const SequencePages& source, const LayerRange& layers, const HeadsView& keys,
                      const HeadsView& values, DeviceStream stream) = 0;
  // Attention in one layer; queries are [T, heads, head_dim], out is [T, heads, value_dim].
  virtual void attend(const KvLayout& layout, std::int32_t layer, const PageTables& tables,
                      const AttentionOptions& options, const HeadsView& queries,
                      const HeadsView& out, DeviceStream stream) = 0;
  // Makes the calls for these tables ready for a graph that is captured (stage_batch).
  virtual void stage(const KvLayout& layout, const PageTables& tables, std::int32_t heads,
                     std::int32_t window, DeviceStream stream) = 0;

  // All layers of `count` tokens from `first` on, between layouts of the same layers, cast to the
  // target's type.
  virtual void cast_copy(const SequencePages& source, const SequencePages& target,
                         std::int32_t first, std::int32_t count) = 0;
  virtual void copy_page(const KvLayout& layout, PageId from, PageId to) = 0;
  // Every byte of a page: for tests.
  virtual void fill_page(const KvLayout& layout, PageId page, int byte) = 0;
  // Pages to host memory, side by side, and back. Return when the bytes have arrived.
  virtual void read_pages(const SequencePages& source, std::byte* target) = 0;
  virtual void write_pages(const SequencePages& target, const std::byte* source) = 0;
};

// Makes an arena of so many bytes, all of them zero. Throws when there is not as much memory.
using ArenaFactory = std::function<std::unique_ptr<Arena>(std::size_t bytes)>;

}  // namespace glimprouter
