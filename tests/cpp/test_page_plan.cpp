// The plan of pages before a write: what it asks for, what it copies, and that nothing has changed
// when it is refused or a copy fails.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "glimprouter/kv_cache.hpp"
#include "kv/page_plan.hpp"
#include "ops/host_arena.hpp"

namespace glimprouter {
namespace {

constexpr std::int32_t kPageSize = 4;

// A device whose copies may be refused: the core's own memory, but for that.
class RefusingArena : public HostArena {
 public:
  RefusingArena(std::size_t bytes, const int& copies_left)
      : HostArena(bytes), copies_left_(copies_left) {}
  void copy_page(const KvLayout& layout, PageId from, PageId to) override {
    if (copies_done_++ >= copies_left_) throw std::runtime_error("the device refused");
    HostArena::copy_page(layout, from, to);
  }

 private:
  const int& copies_left_;
  int copies_done_ = 0;
};

struct Fixture {
  int copies_left = 1000;
  KvLayout layout = KvLayout::make(2, 1, 32, kPageSize, DataType::kFloat32);
  std::shared_ptr<PagePool> pool = std::make_shared<PagePool>(
      std::vector<KvLayout>{layout}, 9 * layout.page_bytes(),
      [this](std::size_t bytes) { return std::make_unique<RefusingArena>(bytes, copies_left); },
      layout.page_bytes());
  KvCache cache{pool, 4};

  // A sequence whose six tokens are computed, in two pages of which the second has room for two.
  std::int32_t computed_sequence() {
    const std::int32_t sequence = cache.open({{1, 2, 3, 4, 5, 6}});
    cache.complete(cache.prepare(0, std::vector{sequence}));
    const PageId tail = cache.sequence(sequence).caches[0].pages[1];
    std::memset(pool->address(tail), 0x5A, static_cast<std::size_t>(layout.page_bytes()));
    return sequence;
  }
  const std::vector<PageId>& pages(std::int32_t sequence) {
    return cache.sequence(sequence).caches[0].pages;
  }
  void append(const std::vector<std::int32_t>& sequences, std::size_t tokens) {
    for (const std::int32_t sequence : sequences) {
      cache.append(0, sequence, std::vector<std::int32_t>(tokens, 7));
    }
  }
};

TEST(PagePlan, OfForksInOneBatchTheLastWritesInPlace) {
  Fixture fixture;
  const std::int32_t first = fixture.computed_sequence();
  const std::vector sequences{first, fixture.cache.fork(first), fixture.cache.fork(first)};
  const std::vector<PageId> shared = fixture.pages(first);
  fixture.append(sequences, 1);
  // Exactly the two copies: one page less is refused.
  fixture.pool->limit_sectors(3);
  EXPECT_THROW(fixture.cache.prepare(0, sequences), OutOfPages);
  fixture.pool->limit_sectors(4);
  const RaggedBatch batch = fixture.cache.prepare(0, sequences);
  EXPECT_EQ(fixture.pool->owned(0), 4);
  EXPECT_EQ(fixture.pages(sequences[2]), shared);
  for (std::size_t i = 0; i < 2; ++i) {
    const std::vector<PageId>& own = fixture.pages(sequences[i]);
    EXPECT_EQ(own[0], shared[0]);
    EXPECT_NE(own[1], shared[1]);
    EXPECT_EQ(fixture.pool->references(own[1]), 1);
    EXPECT_EQ(0, std::memcmp(fixture.pool->address(own[1]), fixture.pool->address(shared[1]),
                             static_cast<std::size_t>(fixture.layout.page_bytes())));
  }
  EXPECT_NE(fixture.pages(sequences[0])[1], fixture.pages(sequences[1])[1]);
  EXPECT_EQ(fixture.pool->references(shared[1]), 1);
  fixture.cache.check_invariants();
}

TEST(PagePlan, AFullLastPageIsNotCopied) {
  Fixture fixture;
  const std::int32_t first = fixture.cache.open({{1, 2, 3, 4}});
  fixture.cache.complete(fixture.cache.prepare(0, std::vector{first}));
  const std::vector sequences{first, fixture.cache.fork(first)};
  fixture.append(sequences, 1);
  fixture.copies_left = 0;
  fixture.cache.prepare(0, sequences);
  EXPECT_EQ(fixture.pool->owned(0), 3);
  EXPECT_EQ(fixture.pages(sequences[0])[0], fixture.pages(sequences[1])[0]);
  fixture.cache.check_invariants();
}

TEST(PagePlan, NothingChangesBeforeItIsCarriedOut) {
  Fixture fixture;
  const std::int32_t sequence = fixture.computed_sequence();
  fixture.cache.fork(sequence);
  ModelCache cache = fixture.cache.sequence(sequence).caches[0];
  const std::vector<PageId> before = cache.pages;
  const std::vector pools{fixture.pool};
  PagePlan plan(pools);
  plan.add(0, cache, 40);  // one copy and eight more pages, of the six that are free
  EXPECT_THROW(plan.check_available(), OutOfPages);
  EXPECT_EQ(cache.pages, before);
  EXPECT_EQ(cache.allocated, 6);
  EXPECT_EQ(fixture.pool->owned(0), 2);
  EXPECT_EQ(fixture.pool->references(before[1]), 2);
}

TEST(PagePlan, ACopyThatFailsLeavesEverythingAsItWas) {
  Fixture fixture;
  const std::int32_t first = fixture.computed_sequence();
  const std::vector sequences{first, fixture.cache.fork(first), fixture.cache.fork(first)};
  const std::vector<PageId> shared = fixture.pages(first);
  fixture.append(sequences, 5);
  fixture.copies_left = 1;
  EXPECT_THROW(fixture.cache.prepare(0, sequences), std::runtime_error);
  EXPECT_EQ(fixture.pool->owned(0), 2);
  EXPECT_EQ(fixture.pool->references(shared[1]), 3);
  for (const std::int32_t sequence : sequences) {
    EXPECT_EQ(fixture.pages(sequence), shared);
    EXPECT_EQ(fixture.cache.sequence(sequence).in_flight, 0u);
  }
  fixture.cache.check_invariants();
  fixture.copies_left = 1000;
  fixture.cache.complete(fixture.cache.prepare(0, std::vector{first}));
  EXPECT_EQ(fixture.pages(first).size(), 3u);
  fixture.cache.check_invariants();
}

}  // namespace
}  // namespace glimprouter
