// Pages in host memory, and what the processor does with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "glimprouter/types/arena.hpp"

namespace glimprouter {

// Zeros that the system maps when they are first written: a large arena costs nothing until then.
class ArenaMemory {
 public:
  ArenaMemory() = default;
  explicit ArenaMemory(std::size_t bytes);  // throws std::bad_alloc
  ~ArenaMemory();
  ArenaMemory(const ArenaMemory&) = delete;
  ArenaMemory& operator=(const ArenaMemory&) = delete;

  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class HostArena : public Arena {
 public:
  // Memory of its own, all zeros.
  explicit HostArena(std::size_t bytes) : memory_(bytes), data_(memory_.data()) {}
  // Somebody else's, which outlives this; aligned to its element type.
  explicit HostArena(std::byte* borrowed) : data_(borrowed) {}

  std::string name() const override { return "cpu"; }
  bool reaches(std::int32_t device_type, std::int32_t device_id) const override;
  std::byte* data() const override { return data_; }

  void append(const KvLayout& layout, const LayerRange& layers, const PageTables& tables,
              const HeadsView& keys, const HeadsView& values, DeviceStream stream) override;
  void gather(const SequencePages& source, const LayerRange& layers, const HeadsView& keys,
              const HeadsView& values, DeviceStream stream) override;
  void attend(const KvLayout& layout, std::int32_t layer, const PageTables& tables,
              const AttentionOptions& options, const HeadsView& queries, const HeadsView& out,
              DeviceStream stream) override;
  void stage(const KvLayout&, const PageTables&, std::int32_t, std::int32_t,
             DeviceStream) override {}

  void cast_copy(const SequencePages& source, const SequencePages& target, std::int32_t first,
                 std::int32_t count) override;
  void copy_page(const KvLayout& layout, PageId from, PageId to) override;
  void fill_page(const KvLayout& layout, PageId page, int byte) override;
  void read_pages(const SequencePages& source, std::byte* target) override;
  void write_pages(const SequencePages& target, const std::byte* source) override;

 private:
  std::byte* address(PageId page) const { return data_ + page * KvLayout::kPageUnit; }

  ArenaMemory memory_;
  std::byte* data_;
};

// Makes a HostArena with memory of its own.
ArenaFactory host_arena();

}  // namespace glimprouter
