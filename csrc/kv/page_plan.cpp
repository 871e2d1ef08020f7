#include "kv/page_plan.hpp"

#include <algorithm>

namespace glimprouter {

// The first new token goes into the last page, where that is partly filled. Of two forks in one
// plan only the first needs a copy of the page that they share: the other one is its owner then.
void PagePlan::add(std::int32_t model, ModelCache& cache, std::int32_t length) {
  const KvLayout& layout = pool(model).layout(model);
  Write write{model, &cache, length, /*copies_tail=*/false};
  if (cache.num_computed_tokens % layout.page_size() != 0) {
    const PageId tail = cache.pages.back();
    std::int32_t& owners =
        owners_.try_emplace({model, tail}, pool(model).references(tail)).first->second;
    write.copies_tail = owners > 1;
    if (write.copies_tail) --owners;
  }
  wanted_[static_cast<std::size_t>(model)] += layout.pages_for(length) -
                                              static_cast<std::int64_t>(cache.pages.size()) +
                                              (write.copies_tail ? 1 : 0);
  writes_.push_back(write);
}

// Each pool is asked once, for all of its models together.
void PagePlan::check_available() const {
  for (std::size_t first = 0; first < pools_.size(); ++first) {
    if (std::find(pools_.begin(), pools_.begin() + first, pools_[first]) !=
        pools_.begin() + first) {
      continue;
    }
    PageCounts own(wanted_.size(), 0);
    for (std::size_t model = first; model < pools_.size(); ++model) {
      if (pools_[model] == pools_[first]) own[model] = wanted_[model];
    }
    pools_[first]->check_available(own);
  }
}

// Everything that may fail comes before the first cache changes.
void PagePlan::commit() {
  for (const Write& write : writes_) {
    write.cache->pages.reserve(
        static_cast<std::size_t>(pool(write.model).layout(write.model).pages_for(write.length)));
  }
  const std::vector<PageId> copies = copy_tails();
  auto copy = copies.begin();
  for (const Write& write : writes_) {
    if (!write.copies_tail) continue;
    pool(write.model).release(write.cache->pages.back());
    write.cache->pages.back() = *copy++;
  }
  for (const Write& write : writes_) take(write);
}

// One page a write that needs it, in the order of the writes. All of them go back when one fails.
std::vector<PageId> PagePlan::copy_tails() {
  std::vector<PageId> copies;
  copies.reserve(writes_.size());
  std::vector<std::int32_t> owners;  // models, of the copies
  owners.reserve(writes_.size());
  try {
    for (const Write& write : writes_) {
      if (!write.copies_tail) continue;
      copies.push_back(pool(write.model).take(write.model));
      owners.push_back(write.model);
      pool(write.model).copy_page(write.cache->pages.back(), copies.back());
    }
  } catch (...) {
    for (std::size_t i = 0; i < copies.size(); ++i) pool(owners[i]).release(copies[i]);
    throw;
  }
  return copies;
}

void PagePlan::take(const Write& write) noexcept {
  std::vector<PageId>& pages = write.cache->pages;
  const auto count =
      static_cast<std::size_t>(pool(write.model).layout(write.model).pages_for(write.length));
  while (pages.size() < count) pages.push_back(pool(write.model).take(write.model));
  write.cache->allocated = write.length;
}

}  // namespace glimprouter
