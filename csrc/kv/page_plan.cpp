#include "kv/page_plan.hpp"

namespace glimprouter {

// The first new token goes into the last page, where that is partly filled. Of two forks in one
// plan only the first needs a copy of the page that they share: the other one is its owner then.
void PagePlan::add(std::int32_t model, ModelCache& cache, std::int32_t length) {
  const KvLayout& layout = pool_.layout(model);
  Write write{model, &cache, length, /*copies_tail=*/false};
  if (cache.num_computed_tokens % layout.page_size() != 0) {
    const PageId tail = cache.pages.back();
    std::int32_t& owners = owners_.try_emplace(tail, pool_.references(tail)).first->second;
    write.copies_tail = owners > 1;
    if (write.copies_tail) --owners;
  }
  wanted_[static_cast<std::size_t>(model)] += layout.pages_for(length) -
                                              static_cast<std::int64_t>(cache.pages.size()) +
                                              (write.copies_tail ? 1 : 0);
  writes_.push_back(write);
}

// Everything that may fail comes before the first cache changes.
void PagePlan::commit() {
  for (const Write& write : writes_) {
    write.cache->pages.reserve(
        static_cast<std::size_t>(pool_.layout(write.model).pages_for(write.length)));
  }
  const std::vector<PageId> copies = copy_tails();
  auto copy = copies.begin();
  for (const Write& write : writes_) {
    if (!write.copies_tail) continue;
    pool_.release(write.cache->pages.back());
    write.cache->pages.back() = *copy++;
  }
  for (const Write& write : writes_) take(write);
}

// One page a write that needs it, in the order of the writes. All of them go back when one fails.
std::vector<PageId> PagePlan::copy_tails() {
  std::vector<PageId> copies;
  copies.reserve(writes_.size());
  try {
    for (const Write& write : writes_) {
      if (!write.copies_tail) continue;
      copies.push_back(pool_.take(write.model));
      pool_.copy_page(write.cache->pages.back(), copies.back());
    }
  } catch (...) {
    for (const PageId page : copies) pool_.release(page);
    throw;
  }
  return copies;
}

void PagePlan::take(const Write& write) noexcept {
  std::vector<PageId>& pages = write.cache->pages;
  const auto count = static_cast<std::size_t>(pool_.layout(write.model).pages_for(write.length));
  while (pages.size() < count) pages.push_back(pool_.take(write.model));
  write.cache->allocated = write.length;
}

}  // namespace glimprouter
