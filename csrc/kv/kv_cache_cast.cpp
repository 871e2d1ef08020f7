// One model's keys and values as another's, where both are the same model in other types.
#include <stdexcept>

#include "glimprouter/kv_cache.hpp"
#include "kv/page_plan.hpp"

namespace glimprouter {
namespace {

void check_geometry(const KvLayout& source, const KvLayout& target) {
  if (source.same_layers(target)) return;
  throw std::invalid_argument(
      "a cast-copy needs layouts that differ in type or page size only: from " + source.describe() +
      " to " + target.describe());
}

// The id of a model's token at a position of the sequence, or -1 beyond its tokens.
std::int32_t id_at(const CachedSequence& entry, std::int32_t model, std::int32_t position) {
  const std::vector<std::int32_t>& prompt = entry.prompts[static_cast<std::size_t>(model)];
  const auto length = static_cast<std::int32_t>(prompt.size());
  if (position < length) return prompt[static_cast<std::size_t>(position)];
  const std::vector<std::int32_t>& generated = entry.ledger.ids(model);
  const auto place = static_cast<std::size_t>(position - length);
  return place < generated.size() ? generated[place] : -1;
}

// Keys and values say the same only where the ids and what they mean are the same.
void check_ids(const CachedSequence& entry, std::int32_t source, std::int32_t target,
               std::int32_t tokens) {
  const VocabularyMap* const map = entry.ledger.map().get();
  for (std::int32_t position = 0; position < tokens; ++position) {
    const std::int32_t id = id_at(entry, source, position);
    const bool same = id == id_at(entry, target, position) &&
                      (map == nullptr || map->image(source, target, id) == id);
    if (same) continue;
    throw std::invalid_argument(
        "models " + std::to_string(source) + " and " + std::to_string(target) +
        " have different tokens at position " + std::to_string(position) +
        " of the sequence: keys and values of one are not those of the other");
  }
}

}  // namespace

std::int32_t KvCache::cast_copy(std::int32_t source, std::int32_t target, std::int32_t sequence) {
  check_model(source);
  check_model(target);
  CachedSequence& entry = idle(sequence);
  if (&pool(source) != &pool(target)) {
    throw std::invalid_argument(
        "models " + std::to_string(source) + " and " + std::to_string(target) +
        " have pages in different pools, on " + pool(source).arena().name() + " and " +
        pool(target).arena().name() + ": a cast-copy stays within one pool");
  }
  check_geometry(layout(source), layout(target));
  const ModelCache& from = entry.caches[static_cast<std::size_t>(source)];
  ModelCache& to = entry.caches[static_cast<std::size_t>(target)];
  const std::int32_t first = to.num_computed_tokens;
  if (from.num_computed_tokens <= first) return 0;
  check_ids(entry, source, target, from.num_computed_tokens);
  PagePlan plan(pools_);
  plan.add(target, to, from.num_computed_tokens);
  plan.check_available();
  plan.commit();
  try {
    pool(target).arena().cast_copy({layout(source), from.pages}, {layout(target), to.pages}, first,
                                   from.num_computed_tokens - first);
  } catch (...) {
    release_from(target, to, first);
    throw;
  }
  to.num_computed_tokens = from.num_computed_tokens;
  return to.num_computed_tokens - first;
}

}  // namespace glimprouter
