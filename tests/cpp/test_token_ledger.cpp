// Token ledgers in a long random order of calls under the sanitizers: whatever is appended,
// tokenized anew, truncated, saved and loaded, each model's list reads as what was written. The
// lists themselves are checked in Python against an independent model.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "glimprouter/token_ledger.hpp"

namespace glimprouter {
namespace {

constexpr std::int32_t kModels = 2;
constexpr char kRole = '!';  // stands for tokens with a role, in no token's bytes

class LedgerTape {
 public:
  explicit LedgerTape(std::uint32_t seed) : random_(seed), map_(make_map()), ledger_(map_) {}

  void run(int calls) {
    for (int i = 0; i < calls; ++i) {
      play_one();
      check();
    }
    EXPECT_GT(replaced_, 0) << "no span ever replaced ids before it";
    EXPECT_GT(spoiled_, 0) << "no truncation ever cut a span";
  }

 private:
  int below(int bound) { return static_cast<int>(random_() % static_cast<std::uint32_t>(bound)); }

  // Each byte of two characters, random pieces of them, and a token with a role at the end.
  std::shared_ptr<const VocabularyMap> make_map() {
    const std::string text = "a\xC3\xA9\xE6\x95\xB0";
    std::vector<VocabularyMap::Vocabulary> vocabularies(kModels);
    for (auto& vocabulary : vocabularies) {
      for (const char byte : text) vocabulary.token_bytes.emplace_back(std::string(1, byte));
      for (int i = 0; i < 6; ++i) {
        const auto begin = static_cast<std::size_t>(below(5));
        vocabulary.token_bytes.emplace_back(
            text.substr(begin, static_cast<std::size_t>(2 + below(3))));
      }
      vocabulary.token_bytes.emplace_back(std::nullopt);
    }
    return std::make_shared<VocabularyMap>(vocabularies,
                                           std::vector<std::vector<std::int32_t>>{{12, 12}});
  }

  std::string read(std::int32_t model, std::int32_t id) const {
    const std::string* const bytes = map_->text(model, id);
    return bytes == nullptr ? std::string(1, kRole) : *bytes;
  }

  void play_one() {
    const int choice = below(8);
    if (choice < 4) {
      const std::int32_t model = below(kModels);
      std::vector<std::int32_t> ids;
      for (int i = below(4); i >= 0; --i) ids.push_back(below(map_->size(model)));
      ledger_.append(model, ids);
      for (const std::int32_t id : ids) written_.push_back(read(model, id));
    } else if (choice < 6) {
      resolve(below(kModels));
    } else if (choice == 6) {
      // Mostly by a little: a long list is more of a test.
      const int size = ledger_.size();
      const int kept = std::max(0, size - below(below(10) == 0 ? size + 1 : 5));
      for (const TokenLedger::Cut& cut : ledger_.truncate(kept)) spoiled_ += cut.spoiled;
      written_.resize(static_cast<std::size_t>(kept));
    } else {
      ledger_ = TokenLedger(map_, ledger_.state());
    }
  }

  void resolve(std::int32_t model) {
    std::vector<std::vector<std::int32_t>> spans;
    for (const std::string& span : ledger_.pending_spans(model)) {
      const auto ids = map_->segment(model, span);
      ASSERT_TRUE(ids.has_value());
      spans.push_back(*ids);
    }
    const std::vector<std::int32_t> before = ledger_.ids(model);
    const std::int32_t kept = ledger_.resolve(model, spans);
    const std::vector<std::int32_t>& after = ledger_.ids(model);
    ASSERT_TRUE(std::equal(before.begin(), before.begin() + kept, after.begin()));
    replaced_ += static_cast<int>(before.size()) - kept;
    ASSERT_TRUE(ledger_.caught_up(model));
  }

  void check() {
    ASSERT_EQ(static_cast<std::size_t>(ledger_.size()), written_.size());
    for (std::int32_t model = 0; model < kModels; ++model) {
      const TokenLedger::OwnTokens& own = ledger_.state().own[static_cast<std::size_t>(model)];
      std::string text;
      for (const std::int32_t id : own.ids) text += read(model, id);
      std::string expected;
      for (std::int32_t i = 0; i < own.covered; ++i) {
        expected += written_[static_cast<std::size_t>(i)];
      }
      ASSERT_EQ(text, expected);
    }
  }

  std::mt19937 random_;
  std::shared_ptr<const VocabularyMap> map_;
  TokenLedger ledger_;
  std::vector<std::string> written_;  // text of each written token
  int replaced_ = 0;
  int spoiled_ = 0;
};

TEST(TokenLedger, LongTapes) {
  for (std::uint32_t seed = 0; seed < 4; ++seed) LedgerTape(seed).run(2000);
}

// What a file says is checked before it is used.
TEST(TokenLedger, ForeignStatesAreRefused) {
  const auto map = std::make_shared<VocabularyMap>(
      std::vector<VocabularyMap::Vocabulary>{{{"a", "b", std::nullopt}, {}}, {{"b", "a"}, {}}},
      std::vector<std::vector<std::int32_t>>{});
  TokenLedger ledger(map);
  ledger.append(0, std::vector<std::int32_t>{0, 1});
  const TokenLedger::State good = ledger.state();
  EXPECT_NO_THROW(TokenLedger(map, good));
  const auto refused = [&](auto change) {
    TokenLedger::State bad = good;
    change(bad);
    EXPECT_THROW(TokenLedger(map, bad), std::invalid_argument);
  };
  refused([](auto& state) { state.own.pop_back(); });
  refused([](auto& state) { state.written[0].id = 3; });
  refused([](auto& state) { state.written[0].id = 2; });  // has no counterpart
  refused([](auto& state) { state.written[1].model = 2; });
  refused([](auto& state) { state.own[1].covered = 3; });
  refused([](auto& state) { state.own[1].written_at[1] = 3; });
  refused([](auto& state) { state.own[0].written_at = {2, 1}; });
  refused([](auto& state) { state.own[0].written_at.pop_back(); });
  EXPECT_THROW(TokenLedger(nullptr, good), std::invalid_argument);
}

}  // namespace
}  // namespace glimprouter
