// Where steps end: an automaton for the delimiters over the bytes of every vocabulary entry.
//
// Real tokenizers hide the delimiter inside merged tokens (".\n\n"), split it over two ("\n" +
// "\n") or run on ("\n\n\n"). So the automaton (Aho-Corasick over bytes) is run once over the bytes
// of every token from every state; what it says is stored in one flat table, one dependent load per
// token.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "glimprouter/types/host_device.hpp"
#include "glimprouter/types/step_types.hpp"

namespace glimprouter {

// What a token does in a state, in 16 bits: the next state and the token's classes.
struct TokenEffect {
  std::uint16_t bits;

  static constexpr std::uint16_t kHit = 1u << 8;          // a step ends with this token
  static constexpr std::uint16_t kWhitespace = 1u << 9;   // white space only
  static constexpr std::uint16_t kThinkStart = 1u << 10;  // of a marker that opens thinking
  static constexpr std::uint16_t kThinkEnd = 1u << 11;
  static constexpr std::uint16_t kEndOfSequence = 1u << 12;
  static constexpr std::uint16_t kThinkOpen = 1u << 13;  // such a marker is complete

  GR_HOST_DEVICE std::uint8_t next_state() const { return static_cast<std::uint8_t>(bits & 0xFFu); }
  GR_HOST_DEVICE bool has(std::uint16_t flag) const { return (bits & flag) != 0; }
};

// What a token adds to the hash of a step, which is a polynomial over the step's bytes other than
// white space, modulo 2^64. So equal texts have equal hashes, whatever tokens they are made of and
// whoever wrote them. Special tokens and markers of thinking all count as one and the same symbol.
struct TokenText {
  std::uint64_t shift;  // base ^ number of symbols
  std::uint64_t hash;   // of the token alone

  static constexpr std::uint64_t kEmptyHash = 0;
  GR_HOST_DEVICE std::uint64_t append_to(std::uint64_t step_hash) const {
    return step_hash * shift + hash;
  }
};

// The flat tables of a StepBoundary, one dependent load each. Non-owning.
struct BoundaryTable {
  const std::uint16_t* effects;  // [vocabulary, states]
  const TokenText* texts;        // [vocabulary]
  std::int32_t num_states;

  GR_HOST_DEVICE TokenEffect effect(std::uint8_t state, std::int32_t token) const {
    return TokenEffect{effects[static_cast<std::int64_t>(token) * num_states + state]};
  }
};

class StepBoundary {
 public:
  struct Definition {
    // [vocabulary] bytes of each token; none for special tokens, which interrupt a delimiter.
    std::vector<std::optional<std::string>> token_bytes;
    std::vector<std::string> delimiters;
    std::vector<std::int32_t> think_start_ids;
    std::vector<std::int32_t> think_end_ids;
    std::vector<std::int32_t> eos_ids;
    // Markers of several tokens. Special tokens in them are recognized as such, the others by their
    // bytes, so that they may be split otherwise.
    std::vector<std::vector<std::int32_t>> think_start_markers;
    std::vector<std::vector<std::int32_t>> think_end_markers;
    std::vector<std::int32_t> close_ids;  // appended when thinking is closed by force
  };

  // Throws std::invalid_argument for an empty vocabulary or delimiter, delimiters and markers of
  // more than 126 bytes and special tokens in all, ids outside the vocabulary, an empty marker, or
  // a vocabulary that cannot write any delimiter.
  explicit StepBoundary(Definition definition);

  // Where a sequence stands behind a prompt: behind its last special token that is no marker, for
  // earlier turns have markers of their own. Throws std::invalid_argument for an id outside the
  // vocabulary.
  SequenceStart read_prompt(std::span<const std::int32_t> ids) const;

  std::int32_t vocabulary_size() const { return vocabulary_size_; }
  std::int32_t num_states() const { return num_states_; }
  // How many states, the first ones, mean the same here and there: all where both have the same
  // markers of thinking, else those within delimiters, which must be the same.
  std::uint8_t shared_states(const StepBoundary& other) const;
  const std::vector<std::string>& delimiters() const { return definition_.delimiters; }
  const Definition& definition() const { return definition_; }
  std::uint64_t fingerprint() const { return fingerprint_; }  // of tables and close_ids

  // The lowest bit of a state: whether the step has something other than white space by now. A
  // delimiter ends a step only then, so that a run of delimiters makes one boundary.
  static constexpr std::uint8_t kInitialState = 0;
  static constexpr std::uint8_t kContent = 1;

  BoundaryTable table() const { return {table_.data(), texts_.data(), num_states_}; }
  std::int64_t table_size() const { return static_cast<std::int64_t>(table_.size()); }

 private:
  void build_table();
  void build_texts();
  bool ends_turn(std::int32_t token) const;  // a special token that is no marker

  Definition definition_;
  std::int32_t vocabulary_size_ = 0;
  std::int32_t num_states_ = 0;
  std::int32_t delimiter_states_ = 0;
  std::vector<std::vector<int>> markers_;  // symbols of each, starts and ends
  std::uint64_t fingerprint_ = 0;
  std::vector<std::uint16_t> table_;           // [vocabulary, states]
  std::vector<TokenText> texts_;               // [vocabulary]
  std::vector<std::int32_t> marker_specials_;  // special tokens in markers of several tokens
};

}  // namespace glimprouter
