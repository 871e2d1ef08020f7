#include "glimprouter/page_pool.hpp"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

namespace glimprouter {
namespace {

constexpr int kMaxPagesPerSector = 64;  // of the largest layout, when the sector is chosen here

[[noreturn]] void pool_violated(const std::string& what) {
  throw std::logic_error("page pool invariant violated: " + what);
}

}  // namespace

std::int64_t PagePool::default_sector_bytes(const std::vector<KvLayout>& layouts) {
  std::int64_t largest = 0;
  for (const KvLayout& layout : layouts) largest = std::max(largest, layout.page_bytes());
  std::int64_t best = largest;
  double least_waste = std::numeric_limits<double>::infinity();
  for (std::int64_t pages = 1; pages <= kMaxPagesPerSector; ++pages) {
    const std::int64_t bytes = pages * largest;
    double waste = 0;
    for (const KvLayout& layout : layouts) {
      waste = std::max(
          waste, static_cast<double>(bytes % layout.page_bytes()) / static_cast<double>(bytes));
    }
    if (waste < least_waste - 0.02) {  // a larger sector has to be worth its coarseness
      best = bytes;
      least_waste = waste;
    }
  }
  return best;
}

PagePool::PagePool(std::vector<KvLayout> layouts, std::int64_t arena_bytes,
                   const ArenaFactory& make_arena, std::int64_t sector_bytes)
    : layouts_(std::move(layouts)) {
  arena_ = make_arena(cut_sectors(arena_bytes, sector_bytes));
}

std::size_t PagePool::cut_sectors(std::int64_t arena_bytes, std::int64_t sector_bytes) {
  if (layouts_.empty()) throw std::invalid_argument("a page pool needs a KV layout");
  sector_bytes_ = sector_bytes == 0 ? default_sector_bytes(layouts_) : sector_bytes;
  std::int64_t smallest_page = sector_bytes_;
  for (const KvLayout& layout : layouts_) {
    smallest_page = std::min(smallest_page, layout.page_bytes());
    if (layout.page_bytes() > sector_bytes_ || sector_bytes_ % KvLayout::kPageUnit != 0) {
      throw std::invalid_argument("a sector of " + std::to_string(sector_bytes_) +
                                  " bytes must be a multiple of " +
                                  std::to_string(KvLayout::kPageUnit) +
                                  " and hold a page of each layout: " + layout.describe());
    }
  }
  const std::int64_t sectors = arena_bytes / sector_bytes_;
  if (sectors < 1 + static_cast<std::int64_t>(layouts_.size())) {
    throw std::invalid_argument(
        "an arena of " + std::to_string(arena_bytes) + " bytes is too small: it must hold " +
        std::to_string(layouts_.size() + 1) + " sectors of " + std::to_string(sector_bytes_) +
        " bytes (one for the null page, one a model)");
  }
  if (arena_bytes / KvLayout::kPageUnit > std::numeric_limits<PageId>::max()) {
    throw std::invalid_argument("an arena holds at most 2^31 units of 256 bytes");
  }
  sector_limit_ = sectors - 1;
  models_.resize(layouts_.size());
  for (ModelPages& pages : models_) pages.open_sectors.reserve(static_cast<std::size_t>(sectors));
  sectors_.resize(static_cast<std::size_t>(sectors));
  const auto slots = static_cast<std::size_t>(sector_bytes_ / smallest_page);
  for (Sector& sector : sectors_) {
    sector.free.reserve(slots);
    sector.records.resize(slots);
  }
  for (std::int64_t i = sectors - 1; i >= 1; --i) {
    free_sectors_.push_back(static_cast<std::int32_t>(i));
  }
  return static_cast<std::size_t>(sectors * sector_bytes_);
}

std::int32_t PagePool::slot_of(PageId page) const {
  const Sector& sector = sectors_[static_cast<std::size_t>(sector_of(page))];
  return static_cast<std::int32_t>(page * KvLayout::kPageUnit % sector_bytes_ /
                                   layout(sector.model).page_bytes());
}

const PagePool::PageRecord& PagePool::record(PageId page) const {
  return sectors_[static_cast<std::size_t>(sector_of(page))]
      .records[static_cast<std::size_t>(slot_of(page))];
}

std::int64_t PagePool::takeable_sectors() const {
  const std::int64_t used = num_sectors() - num_free_sectors();
  return std::clamp<std::int64_t>(sector_limit_ - used, 0, num_free_sectors());
}

std::int64_t PagePool::available(std::int32_t model) const {
  return models_[static_cast<std::size_t>(model)].free +
         takeable_sectors() * pages_per_sector(model);
}

bool PagePool::can_allocate(const PageCounts& wanted) const {
  std::int64_t sectors = takeable_sectors();
  for (std::int32_t model = 0; model < num_models(); ++model) {
    const auto index = static_cast<std::size_t>(model);
    const std::int64_t missing = wanted[index] - models_[index].free;
    if (missing <= 0) continue;
    sectors -= (missing + pages_per_sector(model) - 1) / pages_per_sector(model);
  }
  return sectors >= 0;
}

void PagePool::check_available(const PageCounts& wanted) const {
  if (can_allocate(wanted)) return;
  std::string message = "out of pages:";
  for (std::int32_t model = 0; model < num_models(); ++model) {
    message += (model == 0 ? " model " : "; model ") + std::to_string(model) + " wants " +
               std::to_string(wanted[static_cast<std::size_t>(model)]) + " and could have " +
               std::to_string(available(model));
  }
  throw OutOfPages(message + " (of " + std::to_string(takeable_sectors()) +
                   " free sectors); close or preempt a sequence, or make the arena larger");
}

void PagePool::list_sector(std::int32_t sector) noexcept {
  Sector& entry = sectors_[static_cast<std::size_t>(sector)];
  auto& open = models_[static_cast<std::size_t>(entry.model)].open_sectors;
  entry.place = static_cast<std::int32_t>(open.size());
  open.push_back(sector);
}

void PagePool::unlist_sector(std::int32_t sector) noexcept {
  Sector& entry = sectors_[static_cast<std::size_t>(sector)];
  auto& open = models_[static_cast<std::size_t>(entry.model)].open_sectors;
  const std::int32_t last = open.back();
  open[static_cast<std::size_t>(entry.place)] = last;
  sectors_[static_cast<std::size_t>(last)].place = entry.place;
  open.pop_back();
  entry.place = -1;
}

void PagePool::open_sector(std::int32_t model) noexcept {
  const std::int32_t index = free_sectors_.back();
  free_sectors_.pop_back();
  Sector& sector = sectors_[static_cast<std::size_t>(index)];
  sector.model = model;
  const auto slots = static_cast<std::int32_t>(pages_per_sector(model));
  for (std::int32_t slot = slots - 1; slot >= 0; --slot) sector.free.push_back(slot);
  models_[static_cast<std::size_t>(model)].free += slots;
  list_sector(index);
}

PageId PagePool::take(std::int32_t model) noexcept {
  ModelPages& pages = models_[static_cast<std::size_t>(model)];
  if (pages.free == 0) open_sector(model);
  const std::int32_t index = pages.open_sectors.back();
  Sector& sector = sectors_[static_cast<std::size_t>(index)];
  const std::int32_t slot = sector.free.back();
  sector.free.pop_back();
  if (sector.free.empty()) unlist_sector(index);
  sector.records[static_cast<std::size_t>(slot)].references = 1;
  --pages.free;
  ++pages.owned;
  const std::int64_t offset = index * sector_bytes_ + slot * layout(model).page_bytes();
  return static_cast<PageId>(offset / KvLayout::kPageUnit);
}

void PagePool::retain(PageId page) noexcept { ++record(page).references; }

void PagePool::release(PageId page) noexcept {
  PageRecord& entry = record(page);
  if (--entry.references > 0) return;
  --models_[static_cast<std::size_t>(sectors_[static_cast<std::size_t>(sector_of(page))].model)]
        .owned;
  reclaim(page);
}

void PagePool::copy_page(PageId from, PageId to) {
  const std::int32_t model = sectors_[static_cast<std::size_t>(sector_of(from))].model;
  arena_->copy_page(layout(model), from, to);
}

void PagePool::read_pages(std::int32_t model, std::span<const PageId> pages,
                          std::byte* target) const {
  arena_->read_pages({layout(model), pages}, target);
}

void PagePool::write_pages(std::int32_t model, std::span<const PageId> pages,
                           const std::byte* source) {
  arena_->write_pages({layout(model), pages}, source);
}

void PagePool::reclaim(PageId page) noexcept {
  const std::int32_t index = sector_of(page);
  Sector& sector = sectors_[static_cast<std::size_t>(index)];
  ModelPages& pages = models_[static_cast<std::size_t>(sector.model)];
  if (poison_ >= 0) arena_->fill_page(layout(sector.model), page, poison_);
  if (sector.free.empty()) list_sector(index);
  sector.free.push_back(slot_of(page));
  ++pages.free;
  if (static_cast<std::int64_t>(sector.free.size()) < pages_per_sector(sector.model)) return;
  // The last page of the sector: any model may have it now.
  unlist_sector(index);
  pages.free -= static_cast<std::int64_t>(sector.free.size());
  sector.free.clear();
  sector.model = -1;
  free_sectors_.push_back(index);
}

void PagePool::limit_sectors(std::int64_t count) {
  if (count < 0 || count > num_sectors()) {
    throw std::invalid_argument("the limit must lie in [0, " + std::to_string(num_sectors()) +
                                "] sectors, got " + std::to_string(count));
  }
  sector_limit_ = count;
}

void PagePool::check_invariants() const {
  std::vector<ModelPages> counted(layouts_.size());
  std::int64_t free_sectors = 0;
  for (std::size_t index = 1; index < sectors_.size(); ++index) {
    const Sector& sector = sectors_[index];
    if (sector.model < 0) {
      ++free_sectors;
      if (!sector.free.empty() || sector.place != -1) pool_violated("a free sector lists pages");
      continue;
    }
    ModelPages& pages = counted[static_cast<std::size_t>(sector.model)];
    const auto slots = static_cast<std::size_t>(pages_per_sector(sector.model));
    std::vector<int> listed(slots, 0);
    for (const std::int32_t slot : sector.free) ++listed[static_cast<std::size_t>(slot)];
    for (std::size_t slot = 0; slot < slots; ++slot) {
      const PageRecord& entry = sector.records[slot];
      if (entry.references < 0) pool_violated("a count below zero");
      if (listed[slot] != (entry.references == 0 ? 1 : 0))
        pool_violated("a page is in two states, or in none");
      pages.owned += entry.references > 0 ? 1 : 0;
    }
    pages.free += static_cast<std::int64_t>(sector.free.size());
    if (sector.free.size() == slots) pool_violated("a sector without pages in use is not free");
    if ((sector.place < 0) != sector.free.empty()) pool_violated("a sector is in the wrong list");
  }
  if (free_sectors != num_free_sectors()) pool_violated("free sectors are miscounted");
  for (std::size_t model = 0; model < layouts_.size(); ++model) {
    if (counted[model].free != models_[model].free || counted[model].owned != models_[model].owned)
      pool_violated("pages of a model are miscounted");
  }
}

}  // namespace glimprouter
