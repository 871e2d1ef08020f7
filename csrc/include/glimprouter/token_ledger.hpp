// The tokens generated so far, in the ids of each model.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "glimprouter/vocabulary_map.hpp"

namespace glimprouter {

struct WrittenToken {
  std::int32_t id;  // in the writer's vocabulary
  std::int32_t model;
};

// One list of written tokens, and for each model the same text in its own vocabulary. A model's own
// tokens and those with an image are taken over one by one; the others wait as spans of text until
// the model is about to run, and are then tokenized anew (pending_spans, resolve). The alignment is
// kept: after each own token, how many written tokens it completes.
//
// Without a map all models share one list.
//
// Errors: std::invalid_argument; nothing has changed after it.
class TokenLedger {
 public:
  static constexpr std::int32_t kInside = -1;

  // A model's own list. written_at[i]: written tokens that ids[0 .. i] stand for, or kInside where
  // ids[i] ends within a span.
  struct OwnTokens {
    std::vector<std::int32_t> ids;
    std::vector<std::int32_t> written_at;
    std::int32_t covered = 0;  // written tokens that the list stands for
    std::int64_t retokenized = 0;
  };
  // Everything, for saving. One own list without alignment, and no written ones, where all share.
  struct State {
    std::vector<WrittenToken> written;
    std::vector<OwnTokens> own;
  };
  // What truncate() did to a model's list: ids kept, and how many of the dropped ones stood for a
  // span that is cut, so that some of their text must be tokenized again.
  struct Cut {
    std::int32_t kept;
    std::int32_t spoiled;
  };

  TokenLedger() : TokenLedger(nullptr) {}
  explicit TokenLedger(std::shared_ptr<const VocabularyMap> map);
  // Throws std::invalid_argument for a state that no ledger with this map can have.
  TokenLedger(std::shared_ptr<const VocabularyMap> map, State state);

  const std::shared_ptr<const VocabularyMap>& map() const { return map_; }
  const State& state() const { return state_; }
  // The frontier: tokens written, by whomever.
  std::int32_t size() const {
    return static_cast<std::int32_t>(map_ ? state_.written.size() : state_.own[0].ids.size());
  }
  // The text in a model's vocabulary, as far as it has been taken over.
  const std::vector<std::int32_t>& ids(std::int32_t model) const { return own(model).ids; }
  bool caught_up(std::int32_t model) const { return !map_ || own(model).covered == size(); }
  // Tokens that resolve() has added to a model's list.
  std::int64_t retokenized(std::int32_t model) const { return own(model).retokenized; }

  // Adds tokens that a model wrote. Throws for an id outside its vocabulary, or one that another
  // model has no counterpart for.
  void append(std::int32_t model, std::span<const std::int32_t> ids);
  // The texts that the model has no tokens for yet, each extended to whole characters.
  std::vector<std::string> pending_spans(std::int32_t model) const;
  // Takes the tokens of all pending spans over; the model has caught up then. Returns how many of
  // its ids are as before: a span that begins within a character replaces the ids before it.
  // Throws unless each list writes its span with tokens of text.
  std::int32_t resolve(std::int32_t model, const std::vector<std::vector<std::int32_t>>& spans);
  // Drops written tokens behind the first `size`. Each model's list is cut at the last alignment
  // before, and the rest taken over again as far as it has images. One Cut a list.
  std::vector<Cut> truncate(std::int32_t size);

  // Everything as bytes, and back. load() throws for foreign, damaged or shortened bytes, or
  // another map than the one that the ledger was saved with.
  std::string save() const;
  static TokenLedger load(std::shared_ptr<const VocabularyMap> map, std::string_view saved);

 private:
  struct Span {
    std::int32_t begin;  // of written tokens
    std::int32_t end;
  };

  const OwnTokens& own(std::int32_t model) const;
  std::int32_t exact(std::int32_t model, std::int32_t index) const;
  const std::string* text(std::int32_t index) const;
  bool splits_character(std::int32_t index) const;
  std::int32_t aligned_before(const OwnTokens& own, std::int32_t written) const;
  std::vector<Span> plan(std::int32_t model) const;
  std::string bytes(const Span& span) const;
  void take_over(std::int32_t model, std::int32_t end);
  void check_state() const;

  std::shared_ptr<const VocabularyMap> map_;
  State state_;
};

}  // namespace glimprouter
