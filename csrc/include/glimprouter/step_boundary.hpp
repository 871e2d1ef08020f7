// Where steps end: an automaton for the delimiters over the bytes of every vocabulary entry.
//
// Real tokenizers hide the delimiter inside merged tokens (".\n\n"), split it over two ("\n" +
// "\n") or run on ("\n\n\n"). So the automaton (Aho-Corasick over bytes) is run once over the bytes
// of every token from every state; what it says is stored in one flat table, one dependent load per
// token.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "glimprouter/types/host_device.hpp"

namespace glimprouter {

// What a token does in a state, in 16 bits: the next state and the token's classes.
struct TokenEffect {
  std::uint16_t bits;

  static constexpr std::uint16_t kHit = 1u << 8;         // a step ends with this token
  static constexpr std::uint16_t kWhitespace = 1u << 9;  // white space only
  static constexpr std::uint16_t kThinkStart = 1u << 10;
  static constexpr std::uint16_t kThinkEnd = 1u << 11;
  static constexpr std::uint16_t kEndOfSequence = 1u << 12;

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
    std::vector<std::int32_t> close_ids;  // appended when thinking is closed by force
  };

  // Throws std::invalid_argument for an empty vocabulary or delimiter, delimiters of more than 126
  // bytes in all, ids outside the vocabulary, or a vocabulary that cannot write any delimiter.
  explicit StepBoundary(Definition definition);

  std::int32_t vocabulary_size() const { return vocabulary_size_; }
  std::int32_t num_states() const { return num_states_; }
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

  Definition definition_;
  std::int32_t vocabulary_size_ = 0;
  std::int32_t num_states_ = 0;
  std::uint64_t fingerprint_ = 0;
  std::vector<std::uint16_t> table_;  // [vocabulary, states]
  std::vector<TokenText> texts_;      // [vocabulary]
};

}  // namespace glimprouter
