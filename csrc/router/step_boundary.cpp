#include "glimprouter/step_boundary.hpp"

#include <algorithm>
#include <deque>
#include <set>
#include <stdexcept>

namespace glimprouter {
namespace {

constexpr std::size_t kMaxSymbols = 126;  // (symbols + root) * 2 states fit 8 bits
constexpr int kBytes = 256;

bool is_white_space(unsigned char byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

enum class Pattern { kDelimiter, kThinkStart, kThinkEnd };

// Aho-Corasick over bytes and the special tokens of markers: states are the prefixes of delimiters
// and of markers.
class BoundaryAutomaton {
 public:
  using Symbols = std::vector<int>;  // bytes, and kBytes + index of a special token

  explicit BoundaryAutomaton(int num_specials) : symbols_(kBytes + num_specials) {
    nodes_.emplace_back(symbols_);
  }

  int size() const { return static_cast<int>(nodes_.size()); }
  int next(int node, int symbol) const { return at(node).next[static_cast<std::size_t>(symbol)]; }
  bool delimits(int node) const { return at(node).delimits; }
  bool opens(int node) const { return at(node).opens; }
  bool closes(int node) const { return at(node).closes; }
  // Within a marker that begins with a special token: no text of a step.
  bool quiet(int node) const { return at(node).quiet; }
  bool opening(int node) const { return at(node).opening; }  // such a marker opens thinking

  void insert(const Symbols& symbols, Pattern pattern) {
    const bool quiet = pattern != Pattern::kDelimiter && symbols.front() >= kBytes;
    int node = 0;
    for (const int symbol : symbols) {
      if (next(node, symbol) < 0) {
        nodes_[static_cast<std::size_t>(node)].next[static_cast<std::size_t>(symbol)] = size();
        nodes_.emplace_back(symbols_);
      }
      node = next(node, symbol);
      nodes_[static_cast<std::size_t>(node)].quiet |= quiet;
      nodes_[static_cast<std::size_t>(node)].opening |= quiet && pattern == Pattern::kThinkStart;
    }
    Node& last = nodes_[static_cast<std::size_t>(node)];
    last.delimits |= pattern == Pattern::kDelimiter;
    last.opens |= pattern == Pattern::kThinkStart;
    last.closes |= pattern == Pattern::kThinkEnd;
  }

  // Breadth first: where a prefix cannot be extended, go on from its longest proper suffix.
  void link() {
    std::deque<int> queue{0};
    while (!queue.empty()) {
      const int index = queue.front();
      queue.pop_front();
      Node& node = nodes_[static_cast<std::size_t>(index)];
      const Node& fallback = at(node.fallback);
      node.delimits |= fallback.delimits;
      node.opens |= fallback.opens;
      node.closes |= fallback.closes;
      for (std::size_t symbol = 0; symbol < node.next.size(); ++symbol) {
        const int inherited = index == 0 ? 0 : at(node.fallback).next[symbol];
        if (node.next[symbol] < 0) {
          node.next[symbol] = inherited;
        } else {
          nodes_[static_cast<std::size_t>(node.next[symbol])].fallback = inherited;
          queue.push_back(node.next[symbol]);
        }
      }
    }
  }

 private:
  struct Node {
    explicit Node(int symbols) : next(static_cast<std::size_t>(symbols), -1) {}
    std::vector<int> next;
    int fallback = 0;
    bool delimits = false, opens = false, closes = false, quiet = false, opening = false;
  };
  const Node& at(int node) const { return nodes_[static_cast<std::size_t>(node)]; }

  int symbols_;
  std::vector<Node> nodes_;
};

// Runs one token from one state (node * 2 + content).
std::uint16_t run_token(const BoundaryAutomaton& automaton, const std::vector<int>& symbols,
                        int state) {
  int node = state / 2;
  bool content = (state & StepBoundary::kContent) != 0;
  bool hit = false;
  std::uint16_t flags = 0;
  for (const int symbol : symbols) {
    node = automaton.next(node, symbol);
    const bool text = symbol < kBytes && !is_white_space(static_cast<unsigned char>(symbol));
    content |= text && !automaton.quiet(node);
    if (automaton.delimits(node) && content) {
      hit = true;
      content = false;
    }
    if (automaton.opens(node)) {
      flags |= TokenEffect::kThinkStart | TokenEffect::kThinkOpen;
      content = false;
    }
    if (automaton.closes(node)) flags |= TokenEffect::kThinkEnd;
  }
  if (automaton.opening(node) && !content) flags |= TokenEffect::kThinkStart;
  // The boundary is the token's end: text behind the delimiter in the same token cannot be split
  // off.
  if (hit) {
    content = false;
    flags |= TokenEffect::kHit;
  }
  return static_cast<std::uint16_t>((node * 2 + (content ? 1 : 0)) | flags);
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

void check_markers(const std::vector<std::vector<std::int32_t>>& markers, std::size_t vocabulary,
                   const char* what) {
  for (const std::vector<std::int32_t>& marker : markers) {
    if (marker.empty()) throw std::invalid_argument(std::string(what) + " holds an empty marker");
    check_ids(marker, vocabulary, what);
  }
}

bool contains(const std::vector<std::int32_t>& ids, std::int32_t token) {
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

// The symbols of a token: its bytes, or the special token's own, if a marker holds it.
std::vector<int> symbols_of(const std::optional<std::string>& bytes, std::int32_t token,
                            const std::vector<std::int32_t>& specials) {
  std::vector<int> symbols;
  if (bytes.has_value()) {
    for (const char character : *bytes) symbols.push_back(static_cast<unsigned char>(character));
  } else if (const auto found = std::find(specials.begin(), specials.end(), token);
             found != specials.end()) {
    symbols.push_back(kBytes + static_cast<int>(found - specials.begin()));
  }
  return symbols;
}

std::vector<int> symbols_of_marker(const std::vector<std::int32_t>& marker,
                                   const StepBoundary::Definition& definition,
                                   const std::vector<std::int32_t>& specials) {
  std::vector<int> symbols;
  for (const std::int32_t token : marker) {
    const auto& bytes = definition.token_bytes[static_cast<std::size_t>(token)];
    const std::vector<int> own = symbols_of(bytes, token, specials);
    symbols.insert(symbols.end(), own.begin(), own.end());
  }
  return symbols;
}

// States within delimiters: a prefix each, the empty one too, with content and without.
std::int32_t count_delimiter_states(const std::vector<std::string>& delimiters) {
  std::set<std::string> prefixes{""};
  for (const std::string& delimiter : delimiters) {
    for (std::size_t length = 1; length <= delimiter.size(); ++length) {
      prefixes.insert(delimiter.substr(0, length));
    }
  }
  return static_cast<std::int32_t>(prefixes.size()) * 2;
}

BoundaryAutomaton make_automaton(const StepBoundary::Definition& definition,
                                 const std::vector<std::int32_t>& specials) {
  BoundaryAutomaton automaton(static_cast<int>(specials.size()));
  for (const std::string& delimiter : definition.delimiters) {
    automaton.insert(symbols_of(delimiter, -1, specials), Pattern::kDelimiter);
  }
  const auto insert = [&](const std::vector<std::vector<std::int32_t>>& markers, Pattern pattern) {
    for (const std::vector<std::int32_t>& marker : markers) {
      const std::vector<int> symbols = symbols_of_marker(marker, definition, specials);
      if (symbols.empty()) throw std::invalid_argument("a marker of thinking has no bytes");
      automaton.insert(symbols, pattern);
    }
  };
  insert(definition.think_start_markers, Pattern::kThinkStart);
  insert(definition.think_end_markers, Pattern::kThinkEnd);
  if (automaton.size() > static_cast<int>(kMaxSymbols) + 1) {
    throw std::invalid_argument("delimiters and markers have " +
                                std::to_string(automaton.size() - 1) +
                                " bytes and special tokens together; at most 126 are supported");
  }
  automaton.link();
  return automaton;
}

}  // namespace

bool StepBoundary::ends_turn(std::int32_t token) const {
  return !definition_.token_bytes[static_cast<std::size_t>(token)].has_value() &&
         !contains(marker_specials_, token) && !contains(definition_.think_start_ids, token) &&
         !contains(definition_.think_end_ids, token);
}

SequenceStart StepBoundary::read_prompt(std::span<const std::int32_t> ids) const {
  std::uint8_t state = kInitialState;
  bool thinking = false, closed = false;
  for (const std::int32_t token : ids) {
    if (token < 0 || token >= vocabulary_size_) {
      throw std::invalid_argument("the prompt holds " + std::to_string(token) +
                                  ", outside the vocabulary of " +
                                  std::to_string(vocabulary_size_));
    }
    const TokenEffect effect = table().effect(state, token);
    state = effect.next_state();
    if (ends_turn(token) || effect.has(TokenEffect::kEndOfSequence)) {
      thinking = closed = false;
      state = kInitialState;
    } else if (effect.has(TokenEffect::kThinkOpen)) {
      thinking = true;
      closed = false;
      state = static_cast<std::uint8_t>(state & ~kContent);
    } else if (effect.has(TokenEffect::kThinkEnd)) {
      thinking = false;
      closed = true;
    }
  }
  const bool in_step = thinking && (state & kContent) != 0;
  return {closed, in_step, in_step ? state : kInitialState};
}

StepBoundary::StepBoundary(Definition definition) : definition_(std::move(definition)) {
  const std::size_t vocabulary = definition_.token_bytes.size();
  if (vocabulary == 0) throw std::invalid_argument("the vocabulary is empty");
  if (definition_.delimiters.empty()) throw std::invalid_argument("no delimiter given");
  std::size_t total = 0;
  for (const std::string& delimiter : definition_.delimiters) {
    if (delimiter.empty()) throw std::invalid_argument("a delimiter is empty");
    total += delimiter.size();
  }
  if (total > kMaxSymbols) {
    throw std::invalid_argument("the delimiters have " + std::to_string(total) +
                                " bytes together; at most 126 are supported");
  }
  check_ids(definition_.think_start_ids, vocabulary, "think_start_ids");
  check_ids(definition_.think_end_ids, vocabulary, "think_end_ids");
  check_ids(definition_.eos_ids, vocabulary, "eos_ids");
  check_ids(definition_.close_ids, vocabulary, "close_ids");
  check_markers(definition_.think_start_markers, vocabulary, "think_start_markers");
  check_markers(definition_.think_end_markers, vocabulary, "think_end_markers");
  vocabulary_size_ = static_cast<std::int32_t>(vocabulary);
  for (const auto* markers : {&definition_.think_start_markers, &definition_.think_end_markers}) {
    for (const std::vector<std::int32_t>& marker : *markers) {
      for (const std::int32_t token : marker) {
        if (!definition_.token_bytes[static_cast<std::size_t>(token)].has_value() &&
            !contains(marker_specials_, token)) {
          marker_specials_.push_back(token);
        }
      }
    }
  }
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

std::uint8_t StepBoundary::shared_states(const StepBoundary& other) const {
  const bool all = markers_ == other.markers_;
  return static_cast<std::uint8_t>(all ? num_states_ : delimiter_states_);
}

void StepBoundary::build_table() {
  const BoundaryAutomaton automaton = make_automaton(definition_, marker_specials_);
  num_states_ = automaton.size() * 2;
  delimiter_states_ = count_delimiter_states(definition_.delimiters);
  constexpr int kStart = -1, kEnd = -2;  // no symbols
  const auto note = [&](const std::vector<std::vector<std::int32_t>>& markers, int kind) {
    for (const std::vector<std::int32_t>& marker : markers) {
      markers_.push_back(symbols_of_marker(marker, definition_, marker_specials_));
      markers_.back().push_back(kind);
    }
  };
  note(definition_.think_start_markers, kStart);
  note(definition_.think_end_markers, kEnd);
  const auto states = static_cast<std::size_t>(num_states_);
  table_.resize(definition_.token_bytes.size() * states);
  bool can_hit = false;
  std::vector<bool> reachable(states, false);
  for (std::size_t token = 0; token < definition_.token_bytes.size(); ++token) {
    const std::optional<std::string>& bytes = definition_.token_bytes[token];
    const std::vector<int> symbols =
        symbols_of(bytes, static_cast<std::int32_t>(token), marker_specials_);
    for (std::size_t state = 0; state < states; ++state) {
      std::uint16_t& entry = table_[token * states + state];
      if (!bytes.has_value() && symbols.empty()) {
        entry = static_cast<std::uint16_t>(state & kContent);  // interrupted, content kept
        continue;
      }
      entry = run_token(automaton, symbols, static_cast<int>(state));
      if (bytes.has_value() && only_white_space(*bytes)) entry |= TokenEffect::kWhitespace;
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
  mark(definition_.think_start_ids, TokenEffect::kThinkStart | TokenEffect::kThinkOpen);
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
