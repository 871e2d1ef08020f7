#include "glimprouter/token_ledger.hpp"

#include <algorithm>
#include <stdexcept>

namespace glimprouter {
namespace {

// Bytes of the UTF-8 character that begins with this byte; 1 for any other byte.
int character_length(unsigned char byte) {
  return byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
}

bool continues_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

}  // namespace

TokenLedger::TokenLedger(std::shared_ptr<const VocabularyMap> map) : map_(std::move(map)) {
  state_.own.resize(map_ ? static_cast<std::size_t>(map_->num_models()) : 1);
}

TokenLedger::TokenLedger(std::shared_ptr<const VocabularyMap> map, State state)
    : map_(std::move(map)), state_(std::move(state)) {
  check_state();
}

void TokenLedger::check_state() const {
  const auto check = [](bool holds) {
    if (!holds) throw std::invalid_argument("the saved tokens are damaged, or of another map");
  };
  const auto size = static_cast<std::int32_t>(state_.written.size());
  if (!map_) return check(state_.own.size() == 1 && size == 0);
  check(static_cast<std::int32_t>(state_.own.size()) == map_->num_models());
  for (const WrittenToken& token : state_.written) {
    check(token.model >= 0 && token.model < map_->num_models());
    check(token.id >= 0 && token.id < map_->size(token.model));
    for (std::int32_t to = 0; to < map_->num_models(); ++to) {
      check(to == token.model || map_->expressible(token.model, to, token.id));
    }
  }
  for (std::int32_t model = 0; model < map_->num_models(); ++model) {
    const OwnTokens& own = state_.own[static_cast<std::size_t>(model)];
    map_->check_ids(model, own.ids, "a list of the saved tokens");
    check(own.written_at.size() == own.ids.size() && own.covered >= 0 && own.covered <= size);
    std::int32_t last = 0;
    for (const std::int32_t written : own.written_at) {
      if (written == kInside) continue;
      check(written >= last && written <= own.covered);
      last = written;
    }
  }
}

const TokenLedger::OwnTokens& TokenLedger::own(std::int32_t model) const {
  if (!map_) return state_.own[0];
  if (model < 0 || model >= map_->num_models()) {
    throw std::invalid_argument("model must lie in [0, " + std::to_string(map_->num_models()) +
                                "), got " + std::to_string(model));
  }
  return state_.own[static_cast<std::size_t>(model)];
}

// The model's own id for a written token, or kNone.
std::int32_t TokenLedger::exact(std::int32_t model, std::int32_t index) const {
  const WrittenToken& token = state_.written[static_cast<std::size_t>(index)];
  return token.model == model ? token.id : map_->image(token.model, model, token.id);
}

const std::string* TokenLedger::text(std::int32_t index) const {
  const WrittenToken& token = state_.written[static_cast<std::size_t>(index)];
  return map_->text(token.model, token.id);
}

void TokenLedger::append(std::int32_t model, std::span<const std::int32_t> ids) {
  if (!map_) {
    state_.own[0].ids.insert(state_.own[0].ids.end(), ids.begin(), ids.end());
    return;
  }
  own(model);
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= map_->size(model)) {
      throw std::invalid_argument("id " + std::to_string(id) + " lies outside vocabulary " +
                                  std::to_string(model) + " of " +
                                  std::to_string(map_->size(model)) + " ids");
    }
    for (std::int32_t to = 0; to < map_->num_models(); ++to) {
      if (to == model || map_->expressible(model, to, id)) continue;
      throw std::invalid_argument("token " + std::to_string(id) + " of vocabulary " +
                                  std::to_string(model) + " has no counterpart in vocabulary " +
                                  std::to_string(to) + ", and no text to write there");
    }
  }
  for (const std::int32_t id : ids) state_.written.push_back({id, model});
  for (std::int32_t to = 0; to < map_->num_models(); ++to) take_over(to, size());
}

// Written tokens up to `end` one by one, as far as they have images.
void TokenLedger::take_over(std::int32_t model, std::int32_t end) {
  OwnTokens& list = state_.own[static_cast<std::size_t>(model)];
  for (; list.covered < end; ++list.covered) {
    const std::int32_t id = exact(model, list.covered);
    if (id == VocabularyMap::kNone) return;
    list.ids.push_back(id);
    list.written_at.push_back(list.covered + 1);
  }
}

// Whether the text before a written token ends within a character that the token goes on with.
bool TokenLedger::splits_character(std::int32_t index) const {
  if (index <= 0 || index >= size()) return false;
  const std::string* const next = text(index);
  if (next == nullptr || !continues_character(next->front())) return false;
  int behind = 0;  // bytes from the character's first one on
  for (std::int32_t before = index - 1; before >= 0; --before) {
    const std::string* const part = text(before);
    if (part == nullptr) return false;
    for (auto byte = part->rbegin(); byte != part->rend(); ++byte) {
      ++behind;
      if (!continues_character(*byte)) {
        return character_length(static_cast<unsigned char>(*byte)) > behind;
      }
      if (behind == 3) return false;
    }
  }
  return false;
}

// How many ids of a list come before its last alignment at or before a number of written tokens.
std::int32_t TokenLedger::aligned_before(const OwnTokens& list, std::int32_t written) const {
  auto count = static_cast<std::int32_t>(list.ids.size());
  while (count > 0) {
    const std::int32_t at = list.written_at[static_cast<std::size_t>(count - 1)];
    if (at != kInside && at <= written) break;
    --count;
  }
  return count;
}

// The runs of written tokens without image, each extended to whole characters. Only the first may
// reach before what the model's list covers; it then begins at an alignment.
std::vector<TokenLedger::Span> TokenLedger::plan(std::int32_t model) const {
  const OwnTokens& list = own(model);
  std::vector<Span> spans;
  for (std::int32_t index = list.covered; index < size();) {
    if (exact(model, index) != VocabularyMap::kNone) {
      ++index;
      continue;
    }
    Span span{index, index + 1};
    while (span.end < size() &&
           (exact(model, span.end) == VocabularyMap::kNone || splits_character(span.end))) {
      ++span.end;
    }
    while (splits_character(span.begin)) {
      --span.begin;
      if (span.begin >= list.covered) continue;
      const std::int32_t kept = aligned_before(list, span.begin);
      span.begin = kept == 0 ? 0 : list.written_at[static_cast<std::size_t>(kept - 1)];
    }
    index = span.end;
    if (!spans.empty() && spans.back().end == span.begin) {
      spans.back().end = span.end;
    } else {
      spans.push_back(span);
    }
  }
  return spans;
}

std::string TokenLedger::bytes(const Span& span) const {
  std::string result;
  for (std::int32_t index = span.begin; index < span.end; ++index) result += *text(index);
  return result;
}

std::vector<std::string> TokenLedger::pending_spans(std::int32_t model) const {
  std::vector<std::string> result;
  if (caught_up(model)) return result;
  for (const Span& span : plan(model)) result.push_back(bytes(span));
  return result;
}

std::int32_t TokenLedger::resolve(std::int32_t model,
                                  const std::vector<std::vector<std::int32_t>>& spans) {
  const std::vector<Span> planned = caught_up(model) ? std::vector<Span>{} : plan(model);
  if (spans.size() != planned.size()) {
    throw std::invalid_argument("model " + std::to_string(model) + " has " +
                                std::to_string(planned.size()) + " pending spans, got ids for " +
                                std::to_string(spans.size()));
  }
  for (std::size_t i = 0; i < spans.size(); ++i) {
    if (!map_->writes(model, spans[i], bytes(planned[i]))) {
      throw std::invalid_argument("the ids for pending span " + std::to_string(i) + " of model " +
                                  std::to_string(model) + " do not write its text");
    }
  }
  if (planned.empty()) return static_cast<std::int32_t>(ids(model).size());
  OwnTokens& list = state_.own[static_cast<std::size_t>(model)];
  if (planned.front().begin < list.covered) {
    const auto kept = static_cast<std::size_t>(aligned_before(list, planned.front().begin));
    list.ids.resize(kept);
    list.written_at.resize(kept);
    list.covered = planned.front().begin;
  }
  const auto kept = static_cast<std::int32_t>(list.ids.size());
  for (std::size_t i = 0; i < spans.size(); ++i) {
    take_over(model, planned[i].begin);
    list.ids.insert(list.ids.end(), spans[i].begin(), spans[i].end());
    list.written_at.resize(list.ids.size(), kInside);
    list.covered = planned[i].end;
    list.written_at.back() = list.covered;  // a span has some bytes, so it has an id
    list.retokenized += static_cast<std::int64_t>(spans[i].size());
  }
  take_over(model, size());
  return kept;
}

std::vector<TokenLedger::Cut> TokenLedger::truncate(std::int32_t size_kept) {
  if (size_kept < 0 || size_kept > size()) {
    throw std::invalid_argument("cannot truncate to " + std::to_string(size_kept) +
                                " generated tokens: there are " + std::to_string(size()));
  }
  std::vector<Cut> cuts;
  if (!map_) {
    state_.own[0].ids.resize(static_cast<std::size_t>(size_kept));
    return {{size_kept, 0}};
  }
  state_.written.resize(static_cast<std::size_t>(size_kept));
  for (std::int32_t model = 0; model < map_->num_models(); ++model) {
    OwnTokens& list = state_.own[static_cast<std::size_t>(model)];
    Cut cut{static_cast<std::int32_t>(list.ids.size()), 0};
    if (list.covered > size_kept) {
      cut.kept = aligned_before(list, size_kept);
      const auto kept = static_cast<std::size_t>(cut.kept);
      list.covered = kept == 0 ? 0 : list.written_at[kept - 1];
      if (list.covered < size_kept) {
        const auto end = std::find_if(list.written_at.begin() + cut.kept, list.written_at.end(),
                                      [](std::int32_t at) { return at != kInside; });
        cut.spoiled = static_cast<std::int32_t>(end - list.written_at.begin()) + 1 - cut.kept;
      }
      list.ids.resize(kept);
      list.written_at.resize(kept);
    }
    take_over(model, size_kept);
    cuts.push_back(cut);
  }
  return cuts;
}

}  // namespace glimprouter
