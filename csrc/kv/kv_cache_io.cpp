// A sequence of the KV cache as bytes and back: preemption to host memory (KvCache::save, load).
#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "glimprouter/kv_cache.hpp"
#include "kv/page_plan.hpp"
#include "kv/token_ledger_io.hpp"

namespace glimprouter {
namespace {

struct SavedHeader {
  char magic[8];
  std::uint32_t version;
  std::int32_t num_models;
  std::int64_t total_bytes;
};

struct SavedModel {
  std::uint32_t layout_version;
  DataType dtype;
  std::int64_t layout;  // numbers of it (KvLayout::numbers), which follow; then the prompt's tokens
  std::int64_t prompt;
  std::int64_t num_computed_tokens;
  std::int64_t excess;
};
static_assert(std::is_trivially_copyable_v<SavedHeader> &&
              std::is_trivially_copyable_v<SavedModel>);

constexpr char kMagic[8] = {'G', 'R', 'K', 'V', 'S', 'E', 'Q', '\n'};
constexpr std::uint32_t kVersion = 4;
constexpr const char* kWhat = "sequence";

std::string_view checked_body(std::string_view saved) {
  SavedHeader header;
  if (saved.size() < sizeof header || std::memcmp(saved.data(), kMagic, sizeof kMagic) != 0) {
    throw std::invalid_argument("these bytes are not a saved KV sequence (they come from save())");
  }
  std::memcpy(static_cast<void*>(&header), saved.data(), sizeof header);
  if (header.version != kVersion) {
    throw std::invalid_argument("the sequence was saved in format " +
                                std::to_string(header.version) + ", this version reads " +
                                std::to_string(kVersion));
  }
  if (header.total_bytes != static_cast<std::int64_t>(saved.size())) refuse_damaged(kWhat);
  return checked_bytes(saved, kWhat);
}

KvLayout read_layout(const SavedModel& saved, BytesReader& reader) {
  if (saved.layout_version != KvLayout::kVersion) {
    throw std::invalid_argument("the sequence was saved with KV layouts of version " +
                                std::to_string(saved.layout_version) + ", this version reads " +
                                std::to_string(KvLayout::kVersion));
  }
  if (saved.dtype < DataType::kFloat32 || saved.dtype > DataType::kFloat16) refuse_damaged(kWhat);
  return KvLayout::of_numbers(reader.many<std::int64_t>(saved.layout), saved.dtype);
}

}  // namespace

std::string KvCache::save(std::int32_t sequence) {
  const CachedSequence& entry = idle(sequence);
  std::int64_t size = sizeof(SavedHeader) + sizeof(std::uint64_t) + bytes_of_tokens(entry.ledger);
  for (std::int32_t model = 0; model < num_models(); ++model) {
    const auto index = static_cast<std::size_t>(model);
    size += static_cast<std::int64_t>(sizeof(SavedModel) + entry.prompts[index].size() * 4 +
                                      layout(model).numbers().size() * 8);
    size +=
        static_cast<std::int64_t>(entry.caches[index].pages.size()) * layout(model).page_bytes();
  }
  std::string bytes;
  bytes.reserve(static_cast<std::size_t>(size));
  SavedHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.num_models = num_models();
  header.total_bytes = size;
  append_values(bytes, &header, 1);
  append_tokens(bytes, entry.ledger);
  for (std::int32_t model = 0; model < num_models(); ++model) {
    const auto index = static_cast<std::size_t>(model);
    SavedModel saved;
    std::memset(static_cast<void*>(&saved), 0, sizeof saved);  // no indeterminate padding
    const KvLayout& layout = this->layout(model);
    const std::vector<std::int64_t> numbers = layout.numbers();
    saved.layout_version = KvLayout::kVersion;
    saved.dtype = layout.dtype();
    saved.layout = static_cast<std::int64_t>(numbers.size());
    saved.prompt = static_cast<std::int64_t>(entry.prompts[index].size());
    saved.num_computed_tokens = entry.caches[index].num_computed_tokens;
    saved.excess = entry.caches[index].excess;
    append_values(bytes, &saved, 1);
    append_values(bytes, numbers.data(), numbers.size());
    append_values(bytes, entry.prompts[index].data(), entry.prompts[index].size());
    const std::vector<PageId>& pages = entry.caches[index].pages;
    const std::size_t begin = bytes.size();
    bytes.resize(begin + pages.size() * static_cast<std::size_t>(layout.page_bytes()));
    pool(model).read_pages(model, pages, reinterpret_cast<std::byte*>(bytes.data()) + begin);
  }
  append_checksum(bytes);
  return bytes;
}

// A saved sequence that has been checked, with no page yet.
struct KvCache::Parsed {
  CachedSequence entry;
  std::vector<std::int32_t> computed;      // [models] tokens whose keys and values were saved
  std::vector<std::string_view> contents;  // [models] of their pages, side by side
};

KvCache::Parsed KvCache::parse(std::string_view saved) const {
  BytesReader reader(checked_body(saved), kWhat);
  const auto header = reader.one<SavedHeader>();
  if (header.num_models != num_models()) {
    throw std::invalid_argument("the sequence was saved with " + std::to_string(header.num_models) +
                                " models, this cache has " + std::to_string(num_models()));
  }
  Parsed parsed;
  CachedSequence& entry = parsed.entry;
  entry.ledger = read_tokens(reader, map_);
  entry.caches.resize(static_cast<std::size_t>(header.num_models));
  for (std::int32_t model = 0; model < header.num_models; ++model) {
    const auto saved_model = reader.one<SavedModel>();
    const KvLayout& layout = this->layout(model);
    check_same_layout(layout, read_layout(saved_model, reader), "the saved sequence");
    entry.prompts.push_back(reader.many<std::int32_t>(saved_model.prompt));
    if (map_) map_->check_ids(model, entry.prompts.back(), "a prompt of the saved sequence");
    ModelCache& cache = entry.caches[static_cast<std::size_t>(model)];
    const auto computed = static_cast<std::int32_t>(saved_model.num_computed_tokens);
    cache.excess = saved_model.excess;
    if (computed < 0 || computed > entry.length(model)) {
      throw std::invalid_argument("the saved sequence is damaged: it holds more than its tokens");
    }
    parsed.computed.push_back(computed);
    parsed.contents.push_back(reader.take(layout.pages_for(computed) * layout.page_bytes()));
  }
  reader.check_end();
  entry.open = true;
  return parsed;
}

std::vector<std::int32_t> KvCache::check_saved(std::string_view saved) const {
  return parse(saved).computed;
}

std::int32_t KvCache::load(std::string_view saved) {
  Parsed parsed = parse(saved);
  const std::int32_t index = free_sequence();
  std::vector<ModelCache>& caches = parsed.entry.caches;
  PagePlan plan(pools_);
  for (std::size_t model = 0; model < caches.size(); ++model) {
    plan.add(static_cast<std::int32_t>(model), caches[model], parsed.computed[model]);
  }
  plan.check_available();
  plan.commit();
  try {  // memory on a device can fail
    for (std::size_t model = 0; model < caches.size(); ++model) {
      pools_[model]->write_pages(static_cast<std::int32_t>(model), caches[model].pages,
                                 reinterpret_cast<const std::byte*>(parsed.contents[model].data()));
    }
  } catch (...) {
    for (std::size_t model = 0; model < caches.size(); ++model) {
      release_from(static_cast<std::int32_t>(model), caches[model], 0);
    }
    throw;
  }
  for (ModelCache& cache : caches) cache.num_computed_tokens = cache.allocated;
  sequences_[static_cast<std::size_t>(index)] = std::move(parsed.entry);
  return index;
}

}  // namespace glimprouter
