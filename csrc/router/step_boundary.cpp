#include "glimprouter/step_boundary.hpp"

#include <array>
#include <deque>
#include <stdexcept>

namespace glimprouter {
namespace {

constexpr std::size_t kMaxDelimiterBytes = 126;  // (bytes + root) * 2 states fit 8 bits

bool is_white_space(unsigned char byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

// Aho-Corasick: states are the prefixes of the delimiters.
class DelimiterAutomaton {
 public:
  explicit DelimiterAutomaton(const std::vector<std::string>& delimiters) {
    nodes_.emplace_back();
    for (const std::string& delimiter : delimiters) insert(delimiter);
    link();
  }

  int size() const { return static_cast<int>(nodes_.size()); }
  int next(int node, unsigned char byte) const {
    return nodes_[static_cast<std::size_t>(node)].next[byte];
  }
  bool matches(int node) const { return nodes_[static_cast<std::size_t>(node)].match; }

 private:
  struct Node {
    Node() { next.fill(-1); }
    std::array<int, 256> next;
    int fallback = 0;
    bool match = false;
  };

  void insert(const std::string& delimiter) {
    int node = 0;
    for (const char character : delimiter) {
      const auto byte = static_cast<unsigned char>(character);
      if (next(node, byte) < 0) {
        nodes_[static_cast<std::size_t>(node)].next[byte] = size();
        nodes_.emplace_back();
      }
      node = next(node, byte);
    }
    nodes_[static_cast<std::size_t>(node)].match = true;
  }

  // Breadth first: where a prefix cannot be extended, go on from its longest proper suffix.
  void link() {
    std::deque<int> queue{0};
    while (!queue.empty()) {
      const int index = queue.front();
      queue.pop_front();
      Node& node = nodes_[static_cast<std::size_t>(index)];
      node.match |= nodes_[static_cast<std::size_t>(node.fallback)].match;
      for (std::size_t byte = 0; byte < 256; ++byte) {
        const int inherited =
            index == 0 ? 0 : nodes_[static_cast<std::size_t>(node.fallback)].next[byte];
        if (node.next[byte] < 0) {
          node.next[byte] = inherited;
        } else {
          nodes_[static_cast<std::size_t>(node.next[byte])].fallback = inherited;
          queue.push_back(node.next[byte]);
        }
      }
    }
  }

  std::vector<Node> nodes_;
};

// Runs one token from one state (node * 2 + content).
std::uint16_t run_token(const DelimiterAutomaton& automaton, const std::string& bytes, int state) {
  int node = state / 2;
  bool content = (state & StepBoundary::kContent) != 0;
  bool hit = false;
  for (const char character : bytes) {
    const auto byte = static_cast<unsigned char>(character);
    node = automaton.next(node, byte);
    content |= !is_white_space(byte);
    if (automaton.matches(node) && content) {
      hit = true;
      content = false;
    }
  }
  // The boundary is the token's end: text behind the delimiter in the same token cannot be split
  // off.
  if (hit) content = false;
  return static_cast<std::uint16_t>((node * 2 + (content ? 1 : 0)) | (hit ? TokenEffect::kHit : 0));
}

bool only_white_space(const std::string& bytes) {
  for (const char character : bytes) {
    if (!is_white_space(static_cast<unsigned char>(character))) return false;
  }
  return !bytes.empty();
}

void check_ids(const std::vector<std::int32_t>& ids, std::size_t vocabulary, const char* what) {
  for (const std::int32_t id : ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= vocabulary) {
      throw std::invalid_argument(std::string(what) + " holds " + std::to_string(id) +
                                  ", outside the vocabulary of " + std::to_string(vocabulary));
    }
  }
}

}  // namespace

StepBoundary::StepBoundary(Definition definition) : definition_(std::move(definition)) {
  const std::size_t vocabulary = definition_.token_bytes.size();
  if (vocabulary == 0) throw std::invalid_argument("the vocabulary is empty");
  if (definition_.delimiters.empty()) throw std::invalid_argument("no delimiter given");
  std::size_t total = 0;
  for (const std::string& delimiter : definition_.delimiters) {
    if (delimiter.empty()) throw std::invalid_argument("a delimiter is empty");
    total += delimiter.size();
  }
  if (total > kMaxDelimiterBytes) {
    throw std::invalid_argument("the delimiters have " + std::to_string(total) +
                                " bytes together; at most 126 are supported");
  }
  check_ids(definition_.think_start_ids, vocabulary, "think_start_ids");
  check_ids(definition_.think_end_ids, vocabulary, "think_end_ids");
  check_ids(definition_.eos_ids, vocabulary, "eos_ids");
  check_ids(definition_.close_ids, vocabulary, "close_ids");
  vocabulary_size_ = static_cast<std::int32_t>(vocabulary);
  build_texts();
  build_table();
}

void StepBoundary::build_texts() {
  constexpr std::uint64_t kBase = 0x9E3779B97F4A7C15u;  // odd: no byte's weight ever becomes zero
  constexpr TokenText kNothing{1, TokenText::kEmptyHash};
  const auto with = [](TokenText text, std::uint64_t symbol) {
    return TokenText{text.shift * kBase, text.hash * kBase + symbol};
  };
  const TokenText special = with(kNothing, 257);  // bytes count from 1 to 256
  texts_.reserve(definition_.token_bytes.size());
  for (const std::optional<std::string>& bytes : definition_.token_bytes) {
    TokenText text = bytes.has_value() ? kNothing : special;
    for (const char character : bytes.value_or("")) {
      const auto byte = static_cast<unsigned char>(character);
      if (!is_white_space(byte)) text = with(text, std::uint64_t{byte} + 1);
    }
    texts_.push_back(text);
  }
  for (const auto* ids : {&definition_.think_start_ids, &definition_.think_end_ids}) {
    for (const std::int32_t id : *ids) texts_[static_cast<std::size_t>(id)] = special;
  }
}

void StepBoundary::build_table() {
  const DelimiterAutomaton automaton(definition_.delimiters);
  num_states_ = automaton.size() * 2;
  const auto states = static_cast<std::size_t>(num_states_);
  table_.resize(definition_.token_bytes.size() * states);
  bool can_hit = false;
  std::vector<bool> reachable(states, false);
  for (std::size_t token = 0; token < definition_.token_bytes.size(); ++token) {
    const std::optional<std::string>& bytes = definition_.token_bytes[token];
    for (std::size_t state = 0; state < states; ++state) {
      std::uint16_t& entry = table_[token * states + state];
      if (!bytes.has_value()) {
        entry = static_cast<std::uint16_t>(state & kContent);  // interrupted, content kept
        continue;
      }
      entry = run_token(automaton, *bytes, static_cast<int>(state));
      if (only_white_space(*bytes)) entry |= TokenEffect::kWhitespace;
    }
  }
  // Markers of thinking are no text of a step, whatever their bytes say ("<think>" is an ordinary
  // added token in many vocabularies).
  for (const auto* ids : {&definition_.think_start_ids, &definition_.think_end_ids}) {
    for (const std::int32_t id : *ids) {
      for (std::size_t state = 0; state < states; ++state) {
        table_[static_cast<std::size_t>(id) * states + state] =
            static_cast<std::uint16_t>(state & kContent);
      }
    }
  }
  const auto mark = [&](const std::vector<std::int32_t>& ids, std::uint16_t flag) {
    for (const std::int32_t id : ids) {
      for (std::size_t state = 0; state < states; ++state) {
        table_[static_cast<std::size_t>(id) * states + state] |= flag;
      }
    }
  };
  mark(definition_.think_start_ids, TokenEffect::kThinkStart);
  mark(definition_.think_end_ids, TokenEffect::kThinkEnd);
  mark(definition_.eos_ids, TokenEffect::kEndOfSequence);

  // A delimiter that no sequence of tokens writes would mean one endless step: search the states.
  std::deque<std::size_t> queue{kInitialState, kContent};
  reachable[kInitialState] = reachable[kContent] = true;
  while (!queue.empty() && !can_hit) {
    const std::size_t state = queue.front();
    queue.pop_front();
    for (std::size_t token = 0; token < definition_.token_bytes.size(); ++token) {
      const TokenEffect effect{table_[token * states + state]};
      can_hit |= effect.has(TokenEffect::kHit);
      if (!reachable[effect.next_state()]) {
        reachable[effect.next_state()] = true;
        queue.push_back(effect.next_state());
      }
    }
  }
  if (!can_hit) {
    throw std::invalid_argument(
        "no sequence of tokens of this vocabulary writes a delimiter, so no step would ever end; "
        "check the delimiters and the token bytes");
  }
  fingerprint_ = 0xCBF29CE484222325u;
  const auto add = [&](std::uint64_t value) {
    fingerprint_ = (fingerprint_ ^ value) * 0x100000001B3u;
  };
  add(static_cast<std::uint32_t>(vocabulary_size_));
  add(static_cast<std::uint32_t>(num_states_));
  for (const std::uint16_t entry : table_) add(entry);
  for (const TokenText& text : texts_) add(text.hash);
  for (const std::int32_t id : definition_.close_ids) add(static_cast<std::uint32_t>(id));
}

}  // namespace glimprouter
