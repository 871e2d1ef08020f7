// The paged KV cache of many sequences: for each the generated tokens, up to the frontier, that all
// models share, and for each model the pages of what it has computed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "glimprouter/page_pool.hpp"
#include "glimprouter/token_ledger.hpp"
#include "glimprouter/types/ragged_batch.hpp"

namespace glimprouter {

// What one model holds of a sequence. Invariants: num_computed_tokens <= allocated, pages.size() ==
// ceil(allocated / page_size); allocated > num_computed_tokens only while a batch is in flight.
struct ModelCache {
  std::vector<PageId> pages;
  std::int32_t num_computed_tokens = 0;  // tokens whose keys and values are in the pages
  std::int32_t allocated = 0;            // tokens that the pages were reserved for
  std::int64_t excess = 0;               // tokens computed whose text had to be tokenized again
};

struct CachedSequence {
  bool open = false;
  std::uint64_t in_flight = 0;                     // ticket of its prepared batch; 0: none
  std::vector<std::vector<std::int32_t>> prompts;  // [models] ids by each model's own template
  TokenLedger ledger;                              // the frontier is its size
  std::vector<ModelCache> caches;                  // [models]

  // Throws std::out_of_range for another model.
  std::int32_t length(std::int32_t model) const {
    return static_cast<std::int32_t>(prompts.at(static_cast<std::size_t>(model)).size() +
                                     ledger.ids(model).size());
  }
};

// Errors: std::invalid_argument (a bad value), std::out_of_range (a sequence that is not open),
// std::runtime_error (no free sequence, or one in flight), OutOfPages. Nothing has changed after an
// exception. Not thread-safe.
class KvCache {
 public:
  // One pool whose pages go to whichever model needs them. map: of the models' vocabularies where
  // they differ; null where all share one. Throws std::invalid_argument for max_sequences < 1, or
  // a map of another number of models.
  KvCache(std::shared_ptr<PagePool> pool, std::int32_t max_sequences,
          std::shared_ptr<const VocabularyMap> map = nullptr);
  // pools: [models] where each model's pages are: models on several devices have pools there. Each
  // pool has the layouts of all models, in one order, and lends pages to its own models only.
  // Throws std::invalid_argument for another number of pools, or layouts that differ, too.
  KvCache(std::vector<std::shared_ptr<PagePool>> pools, std::int32_t max_sequences,
          std::shared_ptr<const VocabularyMap> map = nullptr);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  std::int32_t num_models() const { return static_cast<std::int32_t>(pools_.size()); }
  PagePool& pool(std::int32_t model) const { return *pools_[static_cast<std::size_t>(model)]; }

  // prompts: [models], none empty, with a map of ids in the vocabularies. Takes no page.
  std::int32_t open(std::vector<std::vector<std::int32_t>> prompts);
  void close(std::int32_t sequence);
  // A copy that shares every page; whoever writes into a shared page first gets a copy of it.
  std::int32_t fork(std::int32_t sequence);
  // Moves the frontier forward by tokens that a model wrote. Takes no page.
  void append(std::int32_t model, std::int32_t sequence, std::span<const std::int32_t> ids);
  // Takes the tokens of what TokenLedger::pending_spans of the sequence names over into the model's
  // list; prepare() wants that. What the model computed and must replace is dropped, and counted.
  void resolve(std::int32_t model, std::int32_t sequence,
               const std::vector<std::vector<std::int32_t>>& spans);
  // Moves the frontier back to `generated` tokens; what any model computed beyond it is dropped.
  void truncate(std::int32_t sequence, std::int32_t generated);
  // Drops the last `count` tokens that a model has computed: it computes them again. After a
  // rewind to a token whose logits are wanted once more.
  void forget(std::int32_t model, std::int32_t sequence, std::int32_t count);
  // Gives one model what another has computed, cast to the type of its pages: for models of equal
  // weights whose layouts differ in type or page size only. Both must have the same ids, in
  // vocabularies that agree about them, as far as the source has computed, and one pool. Returns
  // the tokens copied, 0 where the target has as many.
  std::int32_t cast_copy(std::int32_t source, std::int32_t target, std::int32_t sequence);

  // The batch that brings the model to the frontier of each (distinct) sequence, with its pages
  // taken and shared ones replaced. Every sequence must have at least one token that the model has
  // not computed. ends: [sequences] how many tokens the model has computed of each afterwards,
  // where a pass stops before the frontier; empty for the frontier of all. Ends by complete() after
  // the forward pass, or by abandon().
  RaggedBatch prepare(std::int32_t model, std::span<const std::int32_t> sequences,
                      std::span<const std::int32_t> ends = {});
  // Both throw std::runtime_error when the batch is not in flight (any more).
  void complete(const RaggedBatch& batch);
  void abandon(const RaggedBatch& batch);

  // Everything of a sequence as bytes, keys and values included (preemption: save, then close).
  std::string save(std::int32_t sequence);
  // Throws std::invalid_argument for foreign, damaged or shortened bytes, or other layouts.
  std::int32_t load(std::string_view saved);
  // The checks of load() without a page: tokens that each model has computed, [models].
  std::vector<std::int32_t> check_saved(std::string_view saved) const;

  const CachedSequence& sequence(std::int32_t sequence) const;
  std::vector<std::int32_t> sequences() const;
  // Checks the pools and every sequence. Throws std::logic_error.
  void check_invariants() const;

 private:
  struct Parsed;

  Parsed parse(std::string_view saved) const;
  CachedSequence& at(std::int32_t sequence);
  CachedSequence& idle(std::int32_t sequence);
  std::int32_t free_sequence() const;
  void land(const RaggedBatch& batch);
  void check_model(std::int32_t model) const;
  const KvLayout& layout(std::int32_t model) const { return pool(model).layout(model); }
  void place(RaggedBatch& batch, std::size_t row) noexcept;
  void drop_beyond(CachedSequence& entry, std::int32_t model, std::int32_t kept,
                   std::int32_t spoiled) noexcept;
  void release_from(std::int32_t model, ModelCache& cache,
                    std::int32_t num_computed_tokens) noexcept;

  std::vector<std::shared_ptr<PagePool>> pools_;  // [models]; one pool may stand there often
  std::shared_ptr<const VocabularyMap> map_;
  std::vector<CachedSequence> sequences_;
  std::uint64_t last_ticket_ = 0;
};

}  // namespace glimprouter
