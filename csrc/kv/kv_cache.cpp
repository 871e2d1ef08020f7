#include "glimprouter/kv_cache.hpp"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <utility>

#include "kv/page_plan.hpp"

namespace glimprouter {
namespace {

[[noreturn]] void cache_violated(const std::string& what) {
  throw std::logic_error("KV cache invariant violated: " + what);
}

std::vector<std::shared_ptr<PagePool>> one_for_all(std::shared_ptr<PagePool> pool) {
  if (!pool) throw std::invalid_argument("a page pool is needed");
  const auto models = static_cast<std::size_t>(pool->num_models());
  return std::vector<std::shared_ptr<PagePool>>(models, std::move(pool));
}

// A model has one number everywhere: of its pool, of its layout there, and of its vocabulary.
void check_pools(const std::vector<std::shared_ptr<PagePool>>& pools) {
  if (pools.empty()) throw std::invalid_argument("a page pool is needed");
  const auto models = static_cast<std::int32_t>(pools.size());
  for (std::size_t i = 0; i < pools.size(); ++i) {
    if (!pools[i]) throw std::invalid_argument("a page pool is needed for each model");
    if (pools[i]->num_models() != models) {
      throw std::invalid_argument("pool " + std::to_string(i) + " has the layouts of " +
                                  std::to_string(pools[i]->num_models()) +
                                  " models; pass one pool for each of them, got " +
                                  std::to_string(models));
    }
    for (std::int32_t model = 0; model < models; ++model) {
      check_same_layout(pools[0]->layout(model), pools[i]->layout(model),
                        ("pool " + std::to_string(i)).c_str());
    }
  }
}

}  // namespace

KvCache::KvCache(std::shared_ptr<PagePool> pool, std::int32_t max_sequences,
                 std::shared_ptr<const VocabularyMap> map)
    : KvCache(one_for_all(std::move(pool)), max_sequences, std::move(map)) {}

KvCache::KvCache(std::vector<std::shared_ptr<PagePool>> pools, std::int32_t max_sequences,
                 std::shared_ptr<const VocabularyMap> map)
    : pools_(std::move(pools)), map_(std::move(map)) {
  check_pools(pools_);
  if (map_ && map_->num_models() != num_models()) {
    throw std::invalid_argument("the map has " + std::to_string(map_->num_models()) +
                                " vocabularies, the pool has " + std::to_string(num_models()) +
                                " models");
  }
  if (max_sequences < 1) {
    throw std::invalid_argument("max_sequences must be >= 1, got " + std::to_string(max_sequences));
  }
  sequences_.resize(static_cast<std::size_t>(max_sequences));
}

KvCache::~KvCache() {
  for (CachedSequence& sequence : sequences_) {
    for (std::size_t model = 0; model < sequence.caches.size(); ++model) {
      release_from(static_cast<std::int32_t>(model), sequence.caches[model], 0);
    }
  }
}

const CachedSequence& KvCache::sequence(std::int32_t sequence) const {
  if (sequence < 0 || static_cast<std::size_t>(sequence) >= sequences_.size() ||
      !sequences_[static_cast<std::size_t>(sequence)].open) {
    throw std::out_of_range("sequence " + std::to_string(sequence) +
                            " is not open; sequences come from open(), fork() or load()");
  }
  return sequences_[static_cast<std::size_t>(sequence)];
}

CachedSequence& KvCache::at(std::int32_t sequence) {
  return const_cast<CachedSequence&>(std::as_const(*this).sequence(sequence));
}

CachedSequence& KvCache::idle(std::int32_t sequence) {
  CachedSequence& entry = at(sequence);
  if (entry.in_flight != 0) {
    throw std::runtime_error("sequence " + std::to_string(sequence) +
                             " is part of a batch in flight; complete() or abandon() it first");
  }
  return entry;
}

std::int32_t KvCache::free_sequence() const {
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    if (!sequences_[i].open) return static_cast<std::int32_t>(i);
  }
  throw std::runtime_error("all " + std::to_string(sequences_.size()) +
                           " sequences are in use; close one, or construct the cache with a larger "
                           "max_sequences");
}

std::int32_t KvCache::open(std::vector<std::vector<std::int32_t>> prompts) {
  if (static_cast<std::int32_t>(prompts.size()) != num_models()) {
    throw std::invalid_argument("one prompt a model is needed: " + std::to_string(num_models()) +
                                ", got " + std::to_string(prompts.size()));
  }
  for (std::size_t model = 0; model < prompts.size(); ++model) {
    if (prompts[model].empty()) throw std::invalid_argument("a prompt is empty");
    if (map_) map_->check_ids(static_cast<std::int32_t>(model), prompts[model], "a prompt");
  }
  const std::int32_t index = free_sequence();
  CachedSequence opened;
  opened.caches.resize(prompts.size());
  opened.prompts = std::move(prompts);
  opened.ledger = TokenLedger(map_);
  opened.open = true;
  sequences_[static_cast<std::size_t>(index)] = std::move(opened);
  return index;
}

void KvCache::release_from(std::int32_t model, ModelCache& cache,
                           std::int32_t num_computed_tokens) noexcept {
  const std::int32_t kept = layout(model).pages_for(num_computed_tokens);
  // The last page first: freed pages are taken again in the opposite order.
  while (static_cast<std::int32_t>(cache.pages.size()) > kept) {
    pool(model).release(cache.pages.back());
    cache.pages.pop_back();
  }
  cache.num_computed_tokens = cache.allocated = num_computed_tokens;
}

void KvCache::close(std::int32_t sequence) {
  CachedSequence& entry = idle(sequence);
  for (std::int32_t model = 0; model < num_models(); ++model) {
    release_from(model, entry.caches[static_cast<std::size_t>(model)], 0);
  }
  entry = CachedSequence{};
}

std::int32_t KvCache::fork(std::int32_t sequence) {
  CachedSequence copy = idle(sequence);
  const std::int32_t index = free_sequence();
  for (std::int32_t model = 0; model < num_models(); ++model) {
    for (const PageId page : copy.caches[static_cast<std::size_t>(model)].pages) {
      pool(model).retain(page);
    }
  }
  sequences_[static_cast<std::size_t>(index)] = std::move(copy);
  return index;
}

void KvCache::append(std::int32_t model, std::int32_t sequence, std::span<const std::int32_t> ids) {
  check_model(model);
  idle(sequence).ledger.append(model, ids);
}

void KvCache::resolve(std::int32_t model, std::int32_t sequence,
                      const std::vector<std::vector<std::int32_t>>& spans) {
  check_model(model);
  CachedSequence& entry = idle(sequence);
  const std::int32_t kept = entry.ledger.resolve(model, spans);
  ModelCache& cache = entry.caches[static_cast<std::size_t>(model)];
  drop_beyond(entry, model, kept, cache.num_computed_tokens);
}

// The first `kept` of a model's generated tokens are as before; of the next, `spoiled` at most
// stood for text that stays and that the model must compute again.
void KvCache::drop_beyond(CachedSequence& entry, std::int32_t model, std::int32_t kept,
                          std::int32_t spoiled) noexcept {
  ModelCache& cache = entry.caches[static_cast<std::size_t>(model)];
  const auto prompt =
      static_cast<std::int32_t>(entry.prompts[static_cast<std::size_t>(model)].size());
  const std::int32_t dropped = std::max(0, cache.num_computed_tokens - prompt - kept);
  cache.excess += std::min(dropped, spoiled);
  release_from(model, cache, cache.num_computed_tokens - dropped);
}

void KvCache::truncate(std::int32_t sequence, std::int32_t generated) {
  CachedSequence& entry = idle(sequence);
  const std::vector<TokenLedger::Cut> cuts = entry.ledger.truncate(generated);
  for (std::int32_t model = 0; model < num_models(); ++model) {
    const TokenLedger::Cut& cut = cuts[map_ ? static_cast<std::size_t>(model) : 0];
    drop_beyond(entry, model, cut.kept, cut.spoiled);
  }
}

void KvCache::forget(std::int32_t model, std::int32_t sequence, std::int32_t count) {
  check_model(model);
  ModelCache& cache = idle(sequence).caches[static_cast<std::size_t>(model)];
  if (count < 0 || count > cache.num_computed_tokens) {
    throw std::invalid_argument("model " + std::to_string(model) + " cannot forget " +
                                std::to_string(count) + " tokens of sequence " +
                                std::to_string(sequence) + ": it has computed " +
                                std::to_string(cache.num_computed_tokens));
  }
  release_from(model, cache, cache.num_computed_tokens - count);
}

void KvCache::check_model(std::int32_t model) const {
  if (model >= 0 && model < num_models()) return;
  throw std::invalid_argument("model must lie in [0, " + std::to_string(num_models()) + "), got " +
                              std::to_string(model));
}

RaggedBatch KvCache::prepare(std::int32_t model, std::span<const std::int32_t> sequences,
                             std::span<const std::int32_t> ends) {
  check_model(model);
  if (!ends.empty() && ends.size() != sequences.size()) {
    throw std::invalid_argument("ends must have an entry for each of the " +
                                std::to_string(sequences.size()) + " sequences, got " +
                                std::to_string(ends.size()));
  }
  const KvLayout& layout = this->layout(model);
  RaggedBatch batch;
  batch.model = model;
  batch.sequences.assign(sequences.begin(), sequences.end());
  std::size_t total = 0;
  PagePlan plan(pools_);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    CachedSequence& entry = idle(sequences[i]);
    if (std::find(sequences.begin(), sequences.begin() + static_cast<std::ptrdiff_t>(i),
                  sequences[i]) != sequences.begin() + static_cast<std::ptrdiff_t>(i)) {
      throw std::invalid_argument("sequence " + std::to_string(sequences[i]) +
                                  " is named twice in one batch");
    }
    if (!entry.ledger.caught_up(model)) {
      throw std::invalid_argument("sequence " + std::to_string(sequences[i]) +
                                  " has text that model " + std::to_string(model) +
                                  " has no tokens for; call resolve() with its pending spans");
    }
    ModelCache& cache = entry.caches[static_cast<std::size_t>(model)];
    const std::int32_t length = entry.length(model);
    if (cache.num_computed_tokens == length) {
      throw std::invalid_argument("sequence " + std::to_string(sequences[i]) +
                                  " has no token that model " + std::to_string(model) +
                                  " has not computed; append one, or truncate by one");
    }
    const std::int32_t end = ends.empty() ? length : ends[i];
    if (end <= cache.num_computed_tokens || end > length) {
      throw std::invalid_argument("sequence " + std::to_string(sequences[i]) + " cannot end at " +
                                  std::to_string(end) + ": model " + std::to_string(model) +
                                  " has computed " + std::to_string(cache.num_computed_tokens) +
                                  " of its " + std::to_string(length) + " tokens");
    }
    total += static_cast<std::size_t>(end - cache.num_computed_tokens);
    batch.table_width = std::max(batch.table_width, layout.pages_for(end));
    plan.add(model, cache, end);
  }
  plan.check_available();
  // Everything that may fail comes before the first sequence changes.
  for (auto* column : {&batch.ids, &batch.positions}) column->reserve(total);
  batch.slot_mapping.reserve(total);
  batch.block_table.assign(sequences.size() * static_cast<std::size_t>(batch.table_width),
                           kNullPage);
  for (auto* column : {&batch.cu_seqlens, &batch.seq_lens, &batch.last_rows}) {
    column->reserve(sequences.size() + 1);
  }
  plan.commit();
  batch.cu_seqlens.push_back(0);
  batch.ticket = ++last_ticket_;
  for (std::size_t i = 0; i < sequences.size(); ++i) place(batch, i);
  return batch;
}

void KvCache::place(RaggedBatch& batch, std::size_t row) noexcept {
  CachedSequence& entry = sequences_[static_cast<std::size_t>(batch.sequences[row])];
  const auto model = static_cast<std::size_t>(batch.model);
  const std::int32_t page_size = layout(batch.model).page_size();
  const ModelCache& cache = entry.caches[model];
  const std::int32_t end = cache.allocated;
  entry.in_flight = batch.ticket;
  const std::vector<std::int32_t>& prompt = entry.prompts[model];
  const auto prompt_length = static_cast<std::int32_t>(prompt.size());
  const std::vector<std::int32_t>& generated = entry.ledger.ids(batch.model);
  for (std::int32_t position = cache.num_computed_tokens; position < end; ++position) {
    batch.ids.push_back(position < prompt_length
                            ? prompt[static_cast<std::size_t>(position)]
                            : generated[static_cast<std::size_t>(position - prompt_length)]);
    batch.positions.push_back(position);
    const PageId page = cache.pages[static_cast<std::size_t>(position / page_size)];
    batch.slot_mapping.push_back(std::int64_t{page} * page_size + position % page_size);
  }
  std::copy(cache.pages.begin(), cache.pages.end(),
            batch.block_table.begin() +
                static_cast<std::ptrdiff_t>(row * static_cast<std::size_t>(batch.table_width)));
  batch.seq_lens.push_back(end);
  batch.cu_seqlens.push_back(static_cast<std::int32_t>(batch.ids.size()));
  batch.last_rows.push_back(batch.cu_seqlens.back() - 1);
}

void KvCache::land(const RaggedBatch& batch) {
  for (const std::int32_t index : batch.sequences) {
    if (sequences_[static_cast<std::size_t>(index)].in_flight != batch.ticket) {
      throw std::runtime_error("this batch is not in flight: it was completed or abandoned before");
    }
  }
  for (const std::int32_t index : batch.sequences) {
    sequences_[static_cast<std::size_t>(index)].in_flight = 0;
  }
}

void KvCache::complete(const RaggedBatch& batch) {
  land(batch);
  for (const std::int32_t index : batch.sequences) {
    ModelCache& cache =
        sequences_[static_cast<std::size_t>(index)].caches[static_cast<std::size_t>(batch.model)];
    cache.num_computed_tokens = cache.allocated;
  }
}

void KvCache::abandon(const RaggedBatch& batch) {
  land(batch);
  for (const std::int32_t index : batch.sequences) {
    ModelCache& cache =
        sequences_[static_cast<std::size_t>(index)].caches[static_cast<std::size_t>(batch.model)];
    release_from(batch.model, cache, cache.num_computed_tokens);
  }
}

std::vector<std::int32_t> KvCache::sequences() const {
  std::vector<std::int32_t> result;
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    if (sequences_[i].open) result.push_back(static_cast<std::int32_t>(i));
  }
  return result;
}

void KvCache::check_invariants() const {
  for (const auto& pool : pools_) pool->check_invariants();
  std::map<std::pair<const PagePool*, PageId>, std::int32_t> references;
  for (const CachedSequence& entry : sequences_) {
    for (std::size_t model = 0; model < entry.caches.size(); ++model) {
      const ModelCache& cache = entry.caches[model];
      const KvLayout& layout = this->layout(static_cast<std::int32_t>(model));
      if (cache.num_computed_tokens > cache.allocated)
        cache_violated("more computed than allocated");
      if (cache.allocated > entry.length(static_cast<std::int32_t>(model))) {
        cache_violated("pages beyond the frontier");
      }
      if (entry.in_flight == 0 && cache.num_computed_tokens != cache.allocated) {
        cache_violated("pages are reserved, but no batch is in flight");
      }
      if (static_cast<std::int32_t>(cache.pages.size()) != layout.pages_for(cache.allocated)) {
        cache_violated("a table of the wrong length");
      }
      for (const PageId page : cache.pages) ++references[{pools_[model].get(), page}];
    }
  }
  for (const auto& [owned, count] : references) {
    const auto& [pool, page] = owned;
    if (page == kNullPage) cache_violated("the null page is in a table");
    if (pool->references(page) < count) cache_violated("a page has fewer references than tables");
  }
}

}  // namespace glimprouter
