#include "kv/token_ledger_io.hpp"

#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace glimprouter {
namespace {

struct TokensHeader {
  std::uint64_t vocabulary_map;  // fingerprint; 0: the models share one vocabulary
  std::int64_t written;
};

struct OwnHeader {  // of one model, or of all where they share one vocabulary
  std::int64_t ids;
  std::int64_t aligned;
  std::int64_t covered;
  std::int64_t retokenized;
};

struct LedgerHeader {
  char magic[8];
  std::uint64_t version;
};
static_assert(std::is_trivially_copyable_v<TokensHeader> &&
              std::is_trivially_copyable_v<OwnHeader> &&
              std::is_trivially_copyable_v<LedgerHeader> &&
              std::is_trivially_copyable_v<WrittenToken>);

constexpr char kMagic[8] = {'G', 'R', 'L', 'E', 'D', 'G', 'E', 'R'};
constexpr std::uint64_t kVersion = 1;
constexpr const char* kWhat = "token ledger";

std::uint64_t fingerprint_of(const std::shared_ptr<const VocabularyMap>& map) {
  return map ? map->fingerprint() : 0;
}

}  // namespace

std::int64_t bytes_of_tokens(const TokenLedger& ledger) {
  const TokenLedger::State& tokens = ledger.state();
  auto size = static_cast<std::int64_t>(sizeof(TokensHeader) +
                                        tokens.written.size() * sizeof(WrittenToken));
  for (const TokenLedger::OwnTokens& own : tokens.own) {
    size +=
        static_cast<std::int64_t>(sizeof(OwnHeader) + (own.ids.size() + own.written_at.size()) * 4);
  }
  return size;
}

void append_tokens(std::string& bytes, const TokenLedger& ledger) {
  const TokenLedger::State& tokens = ledger.state();
  const TokensHeader header{fingerprint_of(ledger.map()),
                            static_cast<std::int64_t>(tokens.written.size())};
  append_values(bytes, &header, 1);
  append_values(bytes, tokens.written.data(), tokens.written.size());
  for (const TokenLedger::OwnTokens& own : tokens.own) {
    const OwnHeader counts{static_cast<std::int64_t>(own.ids.size()),
                           static_cast<std::int64_t>(own.written_at.size()), own.covered,
                           own.retokenized};
    append_values(bytes, &counts, 1);
    append_values(bytes, own.ids.data(), own.ids.size());
    append_values(bytes, own.written_at.data(), own.written_at.size());
  }
}

TokenLedger read_tokens(BytesReader& reader, std::shared_ptr<const VocabularyMap> map) {
  const auto header = reader.one<TokensHeader>();
  if (header.vocabulary_map != fingerprint_of(map)) {
    throw std::invalid_argument(
        "the sequence was saved with other vocabularies (another map, or none)");
  }
  TokenLedger::State tokens;
  tokens.written = reader.many<WrittenToken>(header.written);
  const std::int32_t lists = map ? map->num_models() : 1;
  for (std::int32_t list = 0; list < lists; ++list) {
    const auto counts = reader.one<OwnHeader>();
    TokenLedger::OwnTokens own;
    own.ids = reader.many<std::int32_t>(counts.ids);
    own.written_at = reader.many<std::int32_t>(counts.aligned);
    own.covered = static_cast<std::int32_t>(counts.covered);
    own.retokenized = counts.retokenized;
    tokens.own.push_back(std::move(own));
  }
  return TokenLedger(std::move(map), std::move(tokens));
}

std::string TokenLedger::save() const {
  std::string bytes;
  LedgerHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  append_values(bytes, &header, 1);
  append_tokens(bytes, *this);
  append_checksum(bytes);
  return bytes;
}

TokenLedger TokenLedger::load(std::shared_ptr<const VocabularyMap> map, std::string_view saved) {
  if (saved.size() < sizeof(LedgerHeader) ||
      std::memcmp(saved.data(), kMagic, sizeof kMagic) != 0) {
    throw std::invalid_argument("these bytes are not a saved token ledger (they come from save())");
  }
  BytesReader reader(checked_bytes(saved, kWhat), kWhat);
  const auto header = reader.one<LedgerHeader>();
  if (header.version != kVersion) {
    throw std::invalid_argument("the token ledger was saved in format " +
                                std::to_string(header.version) + ", this version reads " +
                                std::to_string(kVersion));
  }
  TokenLedger ledger = read_tokens(reader, std::move(map));
  reader.check_end();
  return ledger;
}

}  // namespace glimprouter
