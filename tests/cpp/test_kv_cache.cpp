// The operations of the KV cache in a long random order, short of memory, under the sanitizers:
// what was written for a token is found again, whatever was forked, truncated, preempted or refused
// in between. The tables themselves are checked in Python against an independent model.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "glimprouter/arena_on.hpp"
#include "glimprouter/kv_cache.hpp"

namespace glimprouter {
namespace {

constexpr std::int32_t kSequences = 6;
constexpr int kModels = 3;  // the third is the first in pages of another size

class CacheTape {
 public:
  // The models of a cast-copy share a pool; the other one may have another.
  CacheTape(std::uint32_t seed, bool two_pools)
      : random_(seed), pools_(kModels, pool_of(two_pools ? 10 : 16)) {
    if (two_pools) pools_[1] = pool_of(8);
    cache_ = std::make_unique<KvCache>(pools_, kSequences);
    for (const auto& pool : pools_) pool->poison_freed_pages(0xA5);
  }

  static std::shared_ptr<PagePool> pool_of(std::int64_t sectors) {
    return std::make_shared<PagePool>(std::vector{KvLayout::make(2, 1, 2, 4, DataType::kFloat32),
                                                  KvLayout::make(3, 2, 4, 8, DataType::kBFloat16),
                                                  KvLayout::make(2, 1, 2, 8, DataType::kFloat32)},
                                      sectors * 2304, arena_on("cpu"), 2304);
  }

  void run(int calls) {
    for (int i = 0; i < calls; ++i) {
      play_one();
      cache_->check_invariants();
      if (i % 16 == 0) check_values();
    }
    EXPECT_GT(refused_, 0) << "the tape was never short of memory";
  }

 private:
  // What each model wrote for each token: a tag in the first bytes of the token's first key.
  using Tags = std::array<std::vector<std::uint32_t>, kModels>;

  int below(int bound) { return static_cast<int>(random_() % static_cast<std::uint32_t>(bound)); }
  std::int32_t any() {
    const std::vector<std::int32_t> open = cache_->sequences();
    return open[static_cast<std::size_t>(below(static_cast<int>(open.size())))];
  }
  bool full() { return cache_->sequences().size() == kSequences; }
  std::vector<std::int32_t> some_ids() {
    return std::vector<std::int32_t>(static_cast<std::size_t>(1 + below(9)), below(1000));
  }

  void play_one() {
    const int choice = below(18);
    if (cache_->sequences().empty() || choice == 0) {
      const std::vector<std::int32_t> prompt = some_ids();
      if (!full()) tags_[cache_->open({prompt, some_ids(), prompt})] = {};
    } else if (choice == 1) {
      const std::int32_t sequence = any();
      cache_->close(sequence);
      tags_.erase(sequence);
    } else if (choice == 2 && !full()) {
      const std::int32_t parent = any();
      tags_[cache_->fork(parent)] = tags_[parent];
    } else if (choice == 3) {
      truncate(any());
    } else if (choice == 4) {
      preempt(any());
    } else if (choice == 5) {
      PagePool& pool = *pools_[static_cast<std::size_t>(below(kModels))];
      pool.limit_sectors(below(2) != 0 ? pool.num_sectors()
                                       : pool.num_sectors() - pool.num_free_sectors());
    } else if (choice == 6) {
      forget(any(), below(kModels));
    } else if (choice == 7) {
      cast_copy(any(), 2 * below(2));
    } else {
      compute(any(), below(kModels));
    }
  }

  void forget(std::int32_t sequence, int model) {
    const ModelCache& cache = cache_->sequence(sequence).caches[static_cast<std::size_t>(model)];
    cache_->forget(model, sequence, below(cache.num_computed_tokens + 1));
    resize_tags(sequence, model);
  }

  void cast_copy(std::int32_t sequence, int source) {
    const auto& from = tags_[sequence][static_cast<std::size_t>(source)];
    auto& to = tags_[sequence][static_cast<std::size_t>(2 - source)];
    try {
      const std::int32_t copied = cache_->cast_copy(source, 2 - source, sequence);
      to.insert(to.end(), from.end() - copied, from.end());
    } catch (const OutOfPages&) {
      ++refused_;
    }
  }

  void truncate(std::int32_t sequence) {
    const auto generated = static_cast<int>(cache_->sequence(sequence).ledger.size());
    cache_->truncate(sequence, below(generated + 1));
    for (int model = 0; model < kModels; ++model) resize_tags(sequence, model);
  }

  void preempt(std::int32_t sequence) {
    const std::string saved = cache_->save(sequence);
    const Tags kept = tags_[sequence];
    cache_->close(sequence);
    tags_.erase(sequence);
    try {
      tags_[cache_->load(saved)] = kept;
    } catch (const OutOfPages&) {
      ++refused_;
    }
  }

  void compute(std::int32_t sequence, int model) {
    cache_->append(0, sequence, some_ids());
    RaggedBatch batch;
    try {
      const CachedSequence& entry = cache_->sequence(sequence);
      const std::int32_t computed =
          entry.caches[static_cast<std::size_t>(model)].num_computed_tokens;
      const std::int32_t end = computed + 1 + below(entry.length(model) - computed);
      const std::vector<std::int32_t> ends{end};  // often before the frontier
      batch = cache_->prepare(model, std::vector{sequence},
                              below(2) == 0 ? ends : std::vector<std::int32_t>{});
    } catch (const OutOfPages&) {
      ++refused_;
      return;
    }
    const std::int32_t page_size = cache_->pool(model).layout(model).page_size();
    auto& tags = tags_[sequence][static_cast<std::size_t>(model)];
    const bool fails = below(5) == 0;  // the forward pass stops half-way
    for (std::size_t i = 0; i < batch.ids.size() / (fails ? 2 : 1); ++i) {
      const std::uint32_t tag = ++last_tag_;
      std::memcpy(token_address(model, static_cast<PageId>(batch.slot_mapping[i] / page_size),
                                static_cast<std::int32_t>(batch.slot_mapping[i] % page_size)),
                  &tag, 4);
      if (!fails) tags.push_back(tag);
    }
    if (fails) {
      cache_->abandon(batch);
    } else {
      cache_->complete(batch);
    }
  }

  std::byte* token_address(int model, PageId page, std::int32_t place) {
    return cache_->pool(model).address(page) +
           place * cache_->pool(model).layout(model).layer(0).key_token_stride;
  }
  void resize_tags(std::int32_t sequence, int model) {
    const auto index = static_cast<std::size_t>(model);
    tags_[sequence][index].resize(
        static_cast<std::size_t>(cache_->sequence(sequence).caches[index].num_computed_tokens));
  }

  void check_values() {
    for (const auto& [sequence, tags] : tags_) {
      for (std::size_t model = 0; model < kModels; ++model) {
        const ModelCache& cache = cache_->sequence(sequence).caches[model];
        const std::int32_t page_size =
            cache_->pool(static_cast<int>(model)).layout(static_cast<int>(model)).page_size();
        ASSERT_EQ(static_cast<std::size_t>(cache.num_computed_tokens), tags[model].size());
        for (std::int32_t position = 0; position < cache.num_computed_tokens; ++position) {
          std::uint32_t stored = 0;
          const PageId page = cache.pages[static_cast<std::size_t>(position / page_size)];
          std::memcpy(&stored, token_address(static_cast<int>(model), page, position % page_size),
                      4);
          ASSERT_EQ(stored, tags[model][static_cast<std::size_t>(position)]);
        }
      }
    }
  }

  std::mt19937 random_;
  std::vector<std::shared_ptr<PagePool>> pools_;  // [models]
  std::unique_ptr<KvCache> cache_;
  std::map<std::int32_t, Tags> tags_;
  std::uint32_t last_tag_ = 0;
  int refused_ = 0;
};

TEST(KvCache, LongTapes) {
  for (std::uint32_t seed = 0; seed < 4; ++seed) CacheTape(seed, /*two_pools=*/false).run(3000);
}

TEST(KvCache, LongTapesOverTwoPools) {
  for (std::uint32_t seed = 0; seed < 4; ++seed) CacheTape(seed, /*two_pools=*/true).run(3000);
}

TEST(KvCache, APageThatTheSecondPoolRefusesLeavesTheFirstAsItWas) {
  const auto small = CacheTape::pool_of(10), large = CacheTape::pool_of(4);
  KvCache cache({small, large, small}, 2);
  const std::vector sequences{cache.open({{1, 2, 3}, std::vector<std::int32_t>(40, 1), {1, 2, 3}})};
  for (const int model : {0, 1}) cache.complete(cache.prepare(model, sequences));
  const std::string saved = cache.save(sequences[0]);
  large->limit_sectors(large->num_sectors() - large->num_free_sectors());
  EXPECT_THROW(cache.load(saved), OutOfPages);
  EXPECT_EQ(small->owned(0), 1);
  EXPECT_EQ(small->owned(1) + large->owned(0), 0);
  EXPECT_THROW(cache.cast_copy(0, 1, sequences[0]), std::invalid_argument);
  cache.check_invariants();
}

}  // namespace
}  // namespace glimprouter
