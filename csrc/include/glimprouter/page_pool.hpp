// One arena of pages for several models. The arena is cut in equal sectors; the layout of each
// model cuts a sector in whole pages, so that memory flows to whichever model needs it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "glimprouter/kv_layout.hpp"
#include "glimprouter/types/arena.hpp"

namespace glimprouter {

// Not enough pages; nothing has changed. The message says what was wanted and what there is.
class OutOfPages : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Pages wanted of each model's layout.
using PageCounts = std::vector<std::int64_t>;  // [models]

// Every page is either free or owned (references >= 1). A sector belongs to one layout while it
// holds an owned page.
// Not thread-safe.
class PagePool {
 public:
  // layouts: one a model. arena_bytes: rounded down to whole sectors, which make_arena is asked
  // for; sector 0 is kept for the null page. sector_bytes: 0 chooses one that wastes little for all
  // layouts. Throws std::invalid_argument for no layout, or an arena that holds no page of each,
  // and what make_arena throws.
  PagePool(std::vector<KvLayout> layouts, std::int64_t arena_bytes, const ArenaFactory& make_arena,
           std::int64_t sector_bytes = 0);

  // The sector that is chosen where none is named.
  static std::int64_t default_sector_bytes(const std::vector<KvLayout>& layouts);

  std::int32_t num_models() const { return static_cast<std::int32_t>(layouts_.size()); }
  const KvLayout& layout(std::int32_t model) const {
    return layouts_[static_cast<std::size_t>(model)];
  }
  std::int64_t sector_bytes() const { return sector_bytes_; }
  std::int64_t num_sectors() const { return static_cast<std::int64_t>(sectors_.size()) - 1; }
  std::int64_t num_free_sectors() const { return static_cast<std::int64_t>(free_sectors_.size()); }
  std::int64_t pages_per_sector(std::int32_t model) const {
    return sector_bytes_ / layout(model).page_bytes();
  }
  // Where the pages are, and what is done with them there.
  Arena& arena() const { return *arena_; }
  // In the memory of the device, if there is one.
  std::byte* address(PageId page) const { return arena_->data() + page * KvLayout::kPageUnit; }

  // Pages of this model that could be allocated now, if no other model took any.
  std::int64_t available(std::int32_t model) const;
  std::int64_t owned(std::int32_t model) const {
    return models_[static_cast<std::size_t>(model)].owned;
  }
  // Whether all of it could be allocated together.
  bool can_allocate(const PageCounts& wanted) const;
  // Throws OutOfPages unless can_allocate(wanted). The plan of every operation on several pages.
  void check_available(const PageCounts& wanted) const;

  // A page with one reference. can_allocate must have said so: never fails.
  PageId take(std::int32_t model) noexcept;
  void retain(PageId page) noexcept;   // one more reference
  void release(PageId page) noexcept;  // one less; the last frees it
  std::int32_t references(PageId page) const { return record(page).references; }
  bool shared(PageId page) const { return references(page) > 1; }

  // Bytes of one page to another of the same model. Throws std::runtime_error when a device fails.
  void copy_page(PageId from, PageId to);
  // Bytes of a model's pages to host memory, side by side, and back.
  void read_pages(std::int32_t model, std::span<const PageId> pages, std::byte* target) const;
  void write_pages(std::int32_t model, std::span<const PageId> pages, const std::byte* source);

  // Sectors that may be in use at a time; below what is in use, nothing new is taken. At most (and
  // at first) num_sectors().
  void limit_sectors(std::int64_t count);

  // Fills a page that becomes free with this byte (tests: what is freed must never be read).
  void poison_freed_pages(int byte) { poison_ = byte; }
  // Throws std::logic_error that names the first invariant that does not hold.
  void check_invariants() const;

 private:
  struct PageRecord {
    std::int32_t references = 0;
  };
  struct Sector {
    std::int32_t model = -1;          // -1: free
    std::int32_t place = -1;          // in its model's list of sectors with free pages; -1: full
    std::vector<std::int32_t> free;   // slots, the next one last
    std::vector<PageRecord> records;  // [slots of the smallest page]
  };
  struct ModelPages {
    std::vector<std::int32_t> open_sectors;  // sectors with free pages
    std::int64_t free = 0;                   // pages in them
    std::int64_t owned = 0;
  };

  // Checks the sizes and cuts the arena into sectors. Returns its bytes.
  std::size_t cut_sectors(std::int64_t arena_bytes, std::int64_t sector_bytes);
  std::int64_t takeable_sectors() const;
  std::int32_t sector_of(PageId page) const {
    return static_cast<std::int32_t>(page * KvLayout::kPageUnit / sector_bytes_);
  }
  PageRecord& record(PageId page) {
    return const_cast<PageRecord&>(std::as_const(*this).record(page));
  }
  const PageRecord& record(PageId page) const;
  std::int32_t slot_of(PageId page) const;
  void open_sector(std::int32_t model) noexcept;
  void reclaim(PageId page) noexcept;
  void list_sector(std::int32_t sector) noexcept;
  void unlist_sector(std::int32_t sector) noexcept;

  std::vector<KvLayout> layouts_;
  std::int64_t sector_bytes_ = 0;
  std::int64_t sector_limit_ = 0;
  std::unique_ptr<Arena> arena_;
  std::vector<Sector> sectors_;             // [0] holds the null page
  std::vector<std::int32_t> free_sectors_;  // the next one last
  std::vector<ModelPages> models_;
  int poison_ = -1;
};

}  // namespace glimprouter
