#include "glimprouter/vocabulary_map.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace glimprouter {
namespace {

// Bytes of a token as they can be shown in a message.
std::string shown(std::string_view bytes) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::string text;
  for (const char character : bytes) {
    const auto byte = static_cast<unsigned char>(character);
    if (byte >= ' ' && byte < 0x7F && byte != '\\') {
      text += character;
    } else {
      text += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return text;
}

}  // namespace

VocabularyMap::VocabularyMap(std::vector<Vocabulary> vocabularies,
                             const std::vector<std::vector<std::int32_t>>& roles) {
  if (vocabularies.size() < 2) {
    throw std::invalid_argument("a map needs at least two vocabularies, got " +
                                std::to_string(vocabularies.size()));
  }
  tables_.resize(vocabularies.size());
  for (std::size_t model = 0; model < tables_.size(); ++model) {
    Table& own = tables_[model];
    own.token_bytes = std::move(vocabularies[model].token_bytes);
    const std::vector<std::int32_t> none(own.token_bytes.size(), kNone);
    own.images.assign(tables_.size(), none);
    own.has_role.assign(own.token_bytes.size(), false);
    check_ids(static_cast<std::int32_t>(model), vocabularies[model].secondary_ids, "secondary_ids");
  }
  assign_roles(roles);
  for (std::size_t model = 0; model < tables_.size(); ++model) {
    index_bytes(tables_[model], vocabularies[model].secondary_ids);
  }
  for (std::size_t from = 0; from < tables_.size(); ++from) {
    for (std::size_t to = 0; to < tables_.size(); ++to) assign_images(from, to);
  }
  fingerprint_ = 0xCBF29CE484222325u;
  const auto add = [&](std::uint64_t value) {
    fingerprint_ = (fingerprint_ ^ value) * 0x100000001B3u;
  };
  for (const Table& own : tables_) {
    for (const auto& images : own.images) {
      for (const std::int32_t id : images) add(static_cast<std::uint32_t>(id));
    }
    for (const auto& bytes : own.token_bytes) {
      add(bytes.has_value() ? bytes->size() : std::numeric_limits<std::uint64_t>::max());
      for (const char byte : bytes.value_or("")) add(static_cast<unsigned char>(byte));
    }
  }
}

void VocabularyMap::check_ids(std::int32_t model, std::span<const std::int32_t> ids,
                              const char* what) const {
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= size(model)) {
      throw std::invalid_argument(std::string(what) + " holds " + std::to_string(id) +
                                  ", outside vocabulary " + std::to_string(model) + " of " +
                                  std::to_string(size(model)) + " ids");
    }
  }
}

void VocabularyMap::assign_roles(const std::vector<std::vector<std::int32_t>>& roles) {
  for (const std::vector<std::int32_t>& role : roles) {
    if (role.size() != tables_.size()) {
      throw std::invalid_argument(
          "a role needs one id a vocabulary: " + std::to_string(tables_.size()) + ", got " +
          std::to_string(role.size()));
    }
    for (std::size_t from = 0; from < tables_.size(); ++from) {
      check_ids(static_cast<std::int32_t>(from), {&role[from], 1}, "roles");
      const auto id = static_cast<std::size_t>(role[from]);
      tables_[from].has_role[id] = true;
      for (std::size_t to = 0; to < tables_.size(); ++to) {
        std::int32_t& image = tables_[from].images[to][id];
        if (image == kNone) image = to == from ? role[from] : role[to];
      }
    }
  }
}

void VocabularyMap::index_bytes(Table& own, const std::vector<std::int32_t>& secondary_ids) const {
  std::vector<bool> secondary(own.token_bytes.size(), false);
  for (const std::int32_t id : secondary_ids) secondary[static_cast<std::size_t>(id)] = true;
  for (const bool choice : {false, true}) {
    for (std::size_t id = 0; id < own.token_bytes.size(); ++id) {
      const std::optional<std::string>& bytes = own.token_bytes[id];
      if (!bytes.has_value() || bytes->empty() || own.has_role[id] || secondary[id] != choice) {
        continue;
      }
      own.by_bytes.try_emplace(*bytes, static_cast<std::int32_t>(id));
      own.longest = std::max(own.longest, bytes->size());
    }
  }
  own.every_byte = true;
  for (int byte = 0; byte < 256; ++byte) {
    own.every_byte &= own.by_bytes.contains(std::string(1, static_cast<char>(byte)));
  }
}

void VocabularyMap::assign_images(std::size_t from, std::size_t to) {
  Table& source = tables_[from];
  const Table& target = tables_[to];
  for (std::size_t id = 0; id < source.token_bytes.size(); ++id) {
    const std::string* const bytes =
        text(static_cast<std::int32_t>(from), static_cast<std::int32_t>(id));
    if (bytes == nullptr) continue;
    if (from == to) {
      source.images[to][id] = static_cast<std::int32_t>(id);
      continue;
    }
    const auto found = target.by_bytes.find(*bytes);
    if (found != target.by_bytes.end()) {
      source.images[to][id] = found->second;
    } else if (!target.every_byte && !segment(static_cast<std::int32_t>(to), *bytes)) {
      throw std::invalid_argument("token " + std::to_string(id) + " of vocabulary " +
                                  std::to_string(from) + " writes \"" + shown(*bytes) +
                                  "\", which vocabulary " + std::to_string(to) +
                                  " cannot write: it has no tokens for single bytes");
    }
  }
}

std::int32_t VocabularyMap::image(std::int32_t from, std::int32_t to, std::int32_t id) const {
  return table(from).images[static_cast<std::size_t>(to)][static_cast<std::size_t>(id)];
}

const std::string* VocabularyMap::text(std::int32_t model, std::int32_t id) const {
  const Table& own = table(model);
  const auto index = static_cast<std::size_t>(id);
  const std::optional<std::string>& bytes = own.token_bytes[index];
  return own.has_role[index] || !bytes.has_value() || bytes->empty() ? nullptr : &*bytes;
}

bool VocabularyMap::writes(std::int32_t model, const std::vector<std::int32_t>& ids,
                           std::string_view bytes) const {
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= size(model)) return false;
    const std::string* const part = text(model, id);
    if (part == nullptr || !bytes.starts_with(*part)) return false;
    bytes.remove_prefix(part->size());
  }
  return bytes.empty();
}

std::optional<std::vector<std::int32_t>> VocabularyMap::segment(std::int32_t model,
                                                                std::string_view bytes) const {
  constexpr std::int32_t kImpossible = std::numeric_limits<std::int32_t>::max();
  struct Best {
    std::int32_t count = kImpossible;  // tokens of the bytes from here on
    std::int32_t first = kNone;
    std::size_t length = 0;  // bytes of the first
  };
  const Table& own = table(model);
  std::vector<Best> best(bytes.size() + 1);
  best.back().count = 0;
  for (std::size_t start = bytes.size(); start-- > 0;) {
    // From the longest to the shortest: of equal counts the longest first token stays.
    for (std::size_t length = std::min(own.longest, bytes.size() - start); length > 0; --length) {
      const std::int32_t rest = best[start + length].count;
      if (rest == kImpossible || rest + 1 >= best[start].count) continue;
      const auto found = own.by_bytes.find(bytes.substr(start, length));
      if (found != own.by_bytes.end()) best[start] = {rest + 1, found->second, length};
    }
  }
  if (best.front().count == kImpossible) return std::nullopt;
  std::vector<std::int32_t> ids;
  ids.reserve(static_cast<std::size_t>(best.front().count));
  for (std::size_t at = 0; at < bytes.size(); at += best[at].length) ids.push_back(best[at].first);
  return ids;
}

}  // namespace glimprouter
