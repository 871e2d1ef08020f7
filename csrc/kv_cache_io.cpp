// A sequence of the KV cache as bytes and back: preemption to host memory (KvCache::save, load).
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "glimprouter/kv_cache.hpp"

namespace glimprouter {
namespace {

struct SavedHeader {
  char magic[8];
  std::uint32_t version;
  std::int32_t num_models;
  std::uint64_t vocabulary_map;  // fingerprint; 0: the models share one vocabulary
  std::int64_t written;
  std::int64_t total_bytes;
};

struct SavedTokens {  // of one model, or of all where they share one vocabulary
  std::int64_t ids;
  std::int64_t aligned;
  std::int64_t covered;
  std::int64_t retokenized;
};

struct SavedModel {
  KvLayout layout;
  std::int64_t prompt;
  std::int64_t committed;
  std::int64_t excess;
};
static_assert(std::is_trivially_copyable_v<SavedHeader> &&
              std::is_trivially_copyable_v<SavedTokens> &&
              std::is_trivially_copyable_v<SavedModel> &&
              std::is_trivially_copyable_v<WrittenToken>);

constexpr char kMagic[8] = {'G', 'R', 'K', 'V', 'S', 'E', 'Q', '\n'};
constexpr std::uint32_t kVersion = 2;

// FNV-1a over 64-bit words; the tail is padded with zeros.
std::uint64_t checksum(std::string_view bytes) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (std::size_t at = 0; at < bytes.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min<std::size_t>(8, bytes.size() - at));
    hash = (hash ^ word) * 0x100000001B3u;
  }
  return hash;
}

template <typename Value>
void write(std::string& bytes, const Value* values, std::size_t count) {
  if (count > 0) bytes.append(reinterpret_cast<const char*>(values), count * sizeof(Value));
}

// Reads front to back; what is missing is an error, never garbage.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}
  std::string_view take(std::int64_t count) {
    if (count < 0 || static_cast<std::uint64_t>(count) > left_.size()) {
      throw std::invalid_argument("the saved sequence is damaged or cut short");
    }
    const std::string_view part = left_.substr(0, static_cast<std::size_t>(count));
    left_.remove_prefix(static_cast<std::size_t>(count));
    return part;
  }
  template <typename Value>
  Value one() {
    Value value;
    std::memcpy(static_cast<void*>(&value), take(sizeof(Value)).data(), sizeof(Value));
    return value;
  }
  template <typename Value>
  std::vector<Value> many(std::int64_t count) {
    constexpr auto kSize = static_cast<std::int64_t>(sizeof(Value));
    const std::string_view part = take(count > left() / kSize ? -1 : count * kSize);
    std::vector<Value> result(static_cast<std::size_t>(count));
    if (!part.empty()) std::memcpy(static_cast<void*>(result.data()), part.data(), part.size());
    return result;
  }
  bool empty() const { return left_.empty(); }

 private:
  std::int64_t left() const { return static_cast<std::int64_t>(left_.size()); }

  std::string_view left_;
};

std::string_view checked_body(std::string_view saved) {
  SavedHeader header;
  if (saved.size() < sizeof header + 8 || std::memcmp(saved.data(), kMagic, sizeof kMagic) != 0) {
    throw std::invalid_argument("these bytes are not a saved KV sequence (they come from save())");
  }
  std::memcpy(static_cast<void*>(&header), saved.data(), sizeof header);
  if (header.version != kVersion) {
    throw std::invalid_argument("the sequence was saved in format " +
                                std::to_string(header.version) + ", this version reads " +
                                std::to_string(kVersion));
  }
  std::uint64_t sum = 0;
  std::memcpy(&sum, saved.data() + saved.size() - 8, 8);
  const std::string_view body = saved.substr(0, saved.size() - 8);
  if (header.total_bytes != static_cast<std::int64_t>(saved.size()) || sum != checksum(body)) {
    throw std::invalid_argument("the saved sequence is damaged or cut short");
  }
  return body;
}

std::int64_t bytes_of(const TokenLedger::State& tokens) {
  auto size = static_cast<std::int64_t>(tokens.written.size() * sizeof(WrittenToken));
  for (const TokenLedger::OwnTokens& own : tokens.own) {
    size += static_cast<std::int64_t>(sizeof(SavedTokens) +
                                      (own.ids.size() + own.written_at.size()) * 4);
  }
  return size;
}

void write_tokens(std::string& bytes, const TokenLedger::State& tokens) {
  write(bytes, tokens.written.data(), tokens.written.size());
  for (const TokenLedger::OwnTokens& own : tokens.own) {
    const SavedTokens counts{static_cast<std::int64_t>(own.ids.size()),
                             static_cast<std::int64_t>(own.written_at.size()), own.covered,
                             own.retokenized};
    write(bytes, &counts, 1);
    write(bytes, own.ids.data(), own.ids.size());
    write(bytes, own.written_at.data(), own.written_at.size());
  }
}

TokenLedger::State read_tokens(Reader& reader, std::int64_t written, std::int32_t lists) {
  TokenLedger::State tokens;
  tokens.written = reader.many<WrittenToken>(written);
  for (std::int32_t list = 0; list < lists; ++list) {
    const auto counts = reader.one<SavedTokens>();
    TokenLedger::OwnTokens own;
    own.ids = reader.many<std::int32_t>(counts.ids);
    own.written_at = reader.many<std::int32_t>(counts.aligned);
    own.covered = static_cast<std::int32_t>(counts.covered);
    own.retokenized = counts.retokenized;
    tokens.own.push_back(std::move(own));
  }
  return tokens;
}

}  // namespace

std::string KvCache::save(std::int32_t sequence) {
  const CachedSequence& entry = idle(sequence);
  const TokenLedger::State& tokens = entry.ledger.state();
  std::int64_t size = sizeof(SavedHeader) + 8 + bytes_of(tokens);
  for (std::int32_t model = 0; model < pool_->num_models(); ++model) {
    const auto index = static_cast<std::size_t>(model);
    size += static_cast<std::int64_t>(sizeof(SavedModel) + entry.prompts[index].size() * 4);
    size += static_cast<std::int64_t>(entry.caches[index].pages.size()) *
            pool_->layout(model).page_bytes;
  }
  std::string bytes;
  bytes.reserve(static_cast<std::size_t>(size));
  SavedHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.num_models = pool_->num_models();
  header.vocabulary_map = map_ ? map_->fingerprint() : 0;
  header.written = static_cast<std::int64_t>(tokens.written.size());
  header.total_bytes = size;
  write(bytes, &header, 1);
  write_tokens(bytes, tokens);
  for (std::int32_t model = 0; model < pool_->num_models(); ++model) {
    const auto index = static_cast<std::size_t>(model);
    SavedModel saved;
    std::memset(static_cast<void*>(&saved), 0, sizeof saved);  // no indeterminate padding
    saved.layout = pool_->layout(model);
    saved.prompt = static_cast<std::int64_t>(entry.prompts[index].size());
    saved.committed = entry.caches[index].committed;
    saved.excess = entry.caches[index].excess;
    write(bytes, &saved, 1);
    write(bytes, entry.prompts[index].data(), entry.prompts[index].size());
    const std::vector<PageId>& pages = entry.caches[index].pages;
    const std::size_t begin = bytes.size();
    bytes.resize(begin + pages.size() * static_cast<std::size_t>(saved.layout.page_bytes));
    pool_->read_pages(model, pages, reinterpret_cast<std::byte*>(bytes.data()) + begin);
  }
  const std::uint64_t sum = checksum(bytes);
  write(bytes, &sum, 1);
  return bytes;
}

std::int32_t KvCache::load(std::string_view saved) {
  Reader reader(checked_body(saved));
  const auto header = reader.one<SavedHeader>();
  if (header.num_models != pool_->num_models()) {
    throw std::invalid_argument("the sequence was saved with " + std::to_string(header.num_models) +
                                " models, this cache has " + std::to_string(pool_->num_models()));
  }
  if (header.vocabulary_map != (map_ ? map_->fingerprint() : 0)) {
    throw std::invalid_argument(
        "the sequence was saved with other vocabularies (another map, or none)");
  }
  CachedSequence entry;
  entry.ledger =
      TokenLedger(map_, read_tokens(reader, header.written, map_ ? header.num_models : 1));
  entry.caches.resize(static_cast<std::size_t>(header.num_models));
  PageCounts wanted;
  std::vector<std::string_view> contents;
  for (std::int32_t model = 0; model < header.num_models; ++model) {
    const auto model_header = reader.one<SavedModel>();
    const KvLayout& layout = pool_->layout(model);
    check_same_layout(layout, model_header.layout, "the saved sequence");
    entry.prompts.push_back(reader.many<std::int32_t>(model_header.prompt));
    ModelCache& cache = entry.caches[static_cast<std::size_t>(model)];
    cache.committed = cache.allocated = static_cast<std::int32_t>(model_header.committed);
    cache.excess = model_header.excess;
    if (cache.committed < 0 || cache.committed > entry.length(model)) {
      throw std::invalid_argument("the saved sequence is damaged: it holds more than its tokens");
    }
    wanted.push_back(layout.pages_for(cache.committed));
    cache.pages.reserve(static_cast<std::size_t>(wanted.back()));
    contents.push_back(reader.take(wanted.back() * layout.page_bytes));
  }
  if (!reader.empty()) throw std::invalid_argument("the saved sequence is damaged or cut short");
  const std::int32_t index = free_sequence();
  pool_->check_available(wanted);
  for (std::int32_t model = 0; model < header.num_models; ++model) {
    ModelCache& cache = entry.caches[static_cast<std::size_t>(model)];
    for (std::int64_t i = 0; i < wanted[static_cast<std::size_t>(model)]; ++i) {
      cache.pages.push_back(pool_->take(model));
    }
    const std::string_view content = contents[static_cast<std::size_t>(model)];
    pool_->write_pages(model, cache.pages, reinterpret_cast<const std::byte*>(content.data()));
  }
  entry.open = true;
  sequences_[static_cast<std::size_t>(index)] = std::move(entry);
  return index;
}

}  // namespace glimprouter
