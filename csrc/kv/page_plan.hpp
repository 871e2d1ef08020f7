// Pages for tokens that are about to be written, and copies of the shared pages that some of them
// go into (copy on write): planned for several caches at once, then taken.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "glimprouter/kv_cache.hpp"

namespace glimprouter {

// Until commit() nothing changes. Between the first add() and commit() no page of the pools is
// taken, retained or released, and the caches stay where they are.
class PagePlan {
 public:
  // pools: [models], which live longer.
  explicit PagePlan(std::span<const std::shared_ptr<PagePool>> pools)
      : pools_(pools), wanted_(pools.size(), 0) {}

  // A model's cache, each at most once, will be written to the end of `length` tokens, behind what
  // it has computed.
  void add(std::int32_t model, ModelCache& cache, std::int32_t length);
  // Throws OutOfPages when the writes cannot have their pages together.
  void check_available() const;
  // Takes the pages: every cache has its own ones for its tokens then (ModelCache::allocated).
  // check_available() has said that there are as many. Throws std::runtime_error when a device
  // cannot copy a page; nothing has changed then.
  void commit();

 private:
  struct Write {
    std::int32_t model;
    ModelCache* cache;
    std::int32_t length;
    bool copies_tail;
  };

  std::vector<PageId> copy_tails();
  void take(const Write& write) noexcept;

  PagePool& pool(std::int32_t model) const { return *pools_[static_cast<std::size_t>(model)]; }

  std::span<const std::shared_ptr<PagePool>> pools_;
  PageCounts wanted_;
  std::vector<Write> writes_;
  // Of tails, once the copies planned so far are made. A page is of a model: the pool is its.
  std::map<std::pair<std::int32_t, PageId>, std::int32_t> owners_;
};

}  // namespace glimprouter
