// Copies of shared pages that are about to be written: copy on write, planned, then kept.
#pragma once

#include <map>
#include <vector>

#include "glimprouter/kv_cache.hpp"

namespace glimprouter {

// The first new token of a cache goes into its last page, where that is partly filled. Pages must
// be available (the plan has said so). Copies that are not kept go back.
class TailCopies {
 public:
  TailCopies(PagePool& pool, std::size_t most) : pool_(pool) { copies_.reserve(most); }
  ~TailCopies() {
    for (const Copy& copy : copies_) pool_.release(copy.page);
  }
  TailCopies(const TailCopies&) = delete;
  TailCopies& operator=(const TailCopies&) = delete;

  // Copies the last page if a token comes into it and somebody else has it too. Of two forks in one
  // batch only the first needs a copy. Throws what the memory of a device throws.
  void add(std::int32_t model, ModelCache& cache) {
    if (cache.num_computed_tokens % pool_.layout(model).page_size == 0) return;
    const PageId tail = cache.pages.back();
    std::int32_t& references = references_.try_emplace(tail, pool_.references(tail)).first->second;
    if (references <= 1) return;
    copies_.push_back({&cache, pool_.take(model)});
    pool_.copy_page(tail, copies_.back().page);
    --references;
  }
  // The copies take the places of the shared pages.
  void keep() noexcept {
    for (const Copy& copy : copies_) {
      pool_.release(copy.cache->pages.back());
      copy.cache->pages.back() = copy.page;
    }
    copies_.clear();
  }

 private:
  struct Copy {
    ModelCache* cache;
    PageId page;
  };

  PagePool& pool_;
  std::vector<Copy> copies_;
  std::map<PageId, std::int32_t> references_;
};

}  // namespace glimprouter
