// What the tokens of one vocabulary are in another: the same bytes, or the same role.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace glimprouter {

// A token is one of three kinds: one with a role (end of thinking, end of sequence, ...), whose
// counterparts are named; one of text, which stands for its bytes, at least one; or neither, which
// cannot be expressed in another vocabulary. Immutable; may be used by many threads.
class VocabularyMap {
 public:
  static constexpr std::int32_t kNone = -1;

  struct Vocabulary {
    // [ids] bytes of each token; none for special tokens.
    std::vector<std::optional<std::string>> token_bytes;
    // These are the last choice among tokens with the same bytes: added tokens and the bytes
    // of byte fallback, which a tokenizer uses only where it has nothing else.
    std::vector<std::int32_t> secondary_ids;
  };

  // roles: each [vocabularies] ids with the same role; where an id has several counterparts, the
  // first one counts. Throws std::invalid_argument for fewer than two vocabularies, an id outside
  // its vocabulary, or a token of text whose bytes another vocabulary cannot write.
  VocabularyMap(std::vector<Vocabulary> vocabularies,
                const std::vector<std::vector<std::int32_t>>& roles);
  VocabularyMap(const VocabularyMap&) = delete;  // the look-up refers to strings of its own
  VocabularyMap& operator=(const VocabularyMap&) = delete;

  std::int32_t num_models() const { return static_cast<std::int32_t>(tables_.size()); }
  std::int32_t size(std::int32_t model) const {
    return static_cast<std::int32_t>(table(model).token_bytes.size());
  }
  std::uint64_t fingerprint() const { return fingerprint_; }
  // For ids from outside, before any look-up. what: "a prompt", say. Throws std::invalid_argument
  // where one is none of the vocabulary's.
  void check_ids(std::int32_t model, std::span<const std::int32_t> ids, const char* what) const;

  // Every id below lies in the vocabulary of its model.

  // The token of another vocabulary with the same role or bytes, or kNone.
  std::int32_t image(std::int32_t from, std::int32_t to, std::int32_t id) const;
  // The bytes of a token of text; null for the other kinds.
  const std::string* text(std::int32_t model, std::int32_t id) const;
  // Whether a token has an image, or bytes that the vocabulary can write.
  bool expressible(std::int32_t from, std::int32_t to, std::int32_t id) const {
    return text(from, id) != nullptr || image(from, to, id) != kNone;
  }
  // Whether these ids are tokens of text and write exactly these bytes.
  bool writes(std::int32_t model, const std::vector<std::int32_t>& ids,
              std::string_view bytes) const;
  // The fewest tokens of text that write these bytes, the longest first of several; none where it
  // is impossible.
  std::optional<std::vector<std::int32_t>> segment(std::int32_t model,
                                                   std::string_view bytes) const;

 private:
  struct Table {
    std::vector<std::optional<std::string>> token_bytes;
    std::vector<std::vector<std::int32_t>> images;  // [vocabularies][ids]
    std::vector<bool> has_role;                     // [ids]
    std::unordered_map<std::string_view, std::int32_t> by_bytes;
    std::size_t longest = 0;  // bytes of its longest token
    bool every_byte = false;  // each of the 256 bytes is a token
  };

  const Table& table(std::int32_t model) const { return tables_[static_cast<std::size_t>(model)]; }
  void assign_roles(const std::vector<std::vector<std::int32_t>>& roles);
  void index_bytes(Table& table, const std::vector<std::int32_t>& secondary_ids) const;
  void assign_images(std::size_t from, std::size_t to);

  std::vector<Table> tables_;
  std::uint64_t fingerprint_ = 0;
};

}  // namespace glimprouter
