// Passes that follow one another in one call, under the sanitizers, beside the same passes and
// steps one by one. With the pair of models it is compared in Python.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <vector>

#include "glimprouter/arena_on.hpp"
#include "glimprouter/kv_cache.hpp"
#include "glimprouter/step_router.hpp"
#include "loop/passes_ahead.hpp"
#include "made_decoder.hpp"
#include "tape_vocabulary.hpp"

namespace glimprouter {
namespace {

constexpr TapeVocabulary kTape{static_cast<std::int32_t>(kVocabulary)};
constexpr std::chrono::nanoseconds kLong = std::chrono::hours(1);
constexpr std::int32_t kPrompts = 2;

// Some sequences that the small model writes, greedily or drawn.
class Loop {
 public:
  Loop(const MadeDecoder& model, std::int32_t pages, float temperature)
      : decoder_(model.parts, layout_of(16)),
        angles_(model.angles),
        pool_(std::make_shared<PagePool>(std::vector{layout_of(16)},
                                         pages * layout_of(16).page_bytes(), arena_on("cpu"))),
        cache_(pool_, kPrompts),
        router_(kTape.boundary(static_cast<std::int32_t>(kVocabulary)), nullptr, kPrompts),
        outputs_(kPrompts, 0, {}),
        ahead_(12, 0, {}) {
    for (std::int32_t i = 0; i < kPrompts; ++i) {
      SequenceOptions options;
      options.limits.route = RouteMode::kSmall;
      options.limits.max_think_tokens = 60;
      options.sampling.temperature = temperature;
      options.seed = 5;
      options.substream = static_cast<std::uint64_t>(i);
      rows_.push_back(router_.open(options));
      sequences_.push_back(cache_.open({{3 + i, 9, 27}}));
    }
  }

  // Whether the small model has something to write for both.
  bool pending() { return router_.pending(Model::kSmall).size() == rows_.size(); }

  // A pass and a step, and as many more as go ahead; the tokens of all of them.
  std::vector<std::int32_t> write(bool go_ahead, std::chrono::nanoseconds most_time = kLong) {
    const RaggedBatch batch = cache_.prepare(0, sequences_);
    std::vector<float> logits(rows_.size() * kVocabulary);
    decoder_.run(*pool_, batch, angles_, batch.last_rows, logits.data());
    cache_.complete(batch);
    router_.step(Model::kSmall,
                 {reinterpret_cast<const char*>(logits.data()), DataType::kFloat32,
                  static_cast<std::int64_t>(rows_.size()), kVocabulary, kVocabulary},
                 rows_, outputs_);
    std::vector<std::int32_t> tokens(outputs_.token.begin(), outputs_.token.end());
    const StepOutputs* last = &outputs_;
    std::size_t first = 0;
    if (go_ahead) {
      passes =
          passes_ahead({decoder_, angles_, cache_, router_, Model::kSmall, 0, sequences_, rows_},
                       outputs_, ahead_, most_time);
      const auto count = static_cast<std::size_t>(passes) * rows_.size();
      tokens.insert(tokens.end(), ahead_.token.begin(),
                    ahead_.token.begin() + static_cast<std::ptrdiff_t>(count));
      if (passes > 0) {
        last = &ahead_;
        first = count - rows_.size();
      }
    }
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      if (last->token[first + i] >= 0) {
        cache_.append(0, sequences_[i], std::span(&last->token[first + i], 1));
      }
      for (std::int32_t k = 0; k < last->forced[first + i]; ++k) {
        const std::vector<std::int32_t> closing = {0};
        cache_.append(0, sequences_[i], closing);
      }
    }
    cache_.check_invariants();
    return tokens;
  }

  std::int32_t passes = 0;

 private:
  HostDecoder decoder_;
  RotaryTables angles_;
  std::shared_ptr<PagePool> pool_;
  KvCache cache_;
  StepRouter router_;
  StepOutputs outputs_;
  StepOutputs ahead_;  // six passes
  std::vector<std::int32_t> sequences_, rows_;
};

TEST(PassesAhead, WriteWhatSinglePassesWrite) {
  const MadeDecoder model;
  for (const float temperature : {0.0f, 1.0f}) {
    Loop single(model, 30, temperature);
    Loop several(model, 30, temperature);
    std::vector<std::int32_t> want, got;
    std::int32_t most = 0;
    while (single.pending()) {
      const std::vector<std::int32_t> tokens = single.write(false);
      want.insert(want.end(), tokens.begin(), tokens.end());
    }
    while (several.pending()) {
      const std::vector<std::int32_t> tokens = several.write(true);
      got.insert(got.end(), tokens.begin(), tokens.end());
      most = std::max(most, several.passes);
    }
    EXPECT_EQ(got, want) << temperature;
    EXPECT_GT(want.size(), 40u);
    EXPECT_GT(most, 1);
    EXPECT_LE(most, 6);  // as many as the outputs hold
  }
}

TEST(PassesAhead, EndWhereTimeOrPagesDo) {
  const MadeDecoder model;
  Loop no_time(model, 30, 1.0f);
  no_time.write(true, std::chrono::nanoseconds(0));
  EXPECT_EQ(no_time.passes, 0);

  Loop enough(model, 30, 1.0f);
  Loop short_of_pages(model, 3, 1.0f);  // one of 16 tokens for each, and none is page 0
  std::vector<std::int32_t> want, got;
  while (want.size() < 26) {
    const std::vector<std::int32_t> tokens = enough.write(false);
    want.insert(want.end(), tokens.begin(), tokens.end());
  }
  try {
    while (true) {
      const std::vector<std::int32_t> tokens = short_of_pages.write(true);
      got.insert(got.end(), tokens.begin(), tokens.end());
    }
  } catch (const OutOfPages&) {  // of a pass that was not ahead: nothing is lost
  }
  EXPECT_EQ(got.size(), 28u);
  want.resize(26);
  got.resize(26);
  EXPECT_EQ(got, want);
}

TEST(PassesAhead, RefuseWhatDoesNotFit) {
  const MadeDecoder model;
  HostDecoder decoder(model.parts, layout_of(16));
  auto pool = std::make_shared<PagePool>(std::vector{layout_of(16)}, 8 * layout_of(16).page_bytes(),
                                         arena_on("cpu"));
  KvCache cache(pool, 1);
  StepRouter router(kTape.boundary(static_cast<std::int32_t>(kVocabulary)), nullptr, 2);
  const std::vector<std::int32_t> one = {0};
  const std::vector<std::int32_t> two = {0, 1};
  StepOutputs outputs(1, 0, {});
  StepOutputs further(1, kAllOutputFields, {});
  const auto call = [&](std::span<const std::int32_t> sequences, std::span<const std::int32_t> rows,
                        const StepOutputs& last, StepOutputs& ahead) {
    passes_ahead({decoder, model.angles, cache, router, Model::kSmall, 0, sequences, rows}, last,
                 ahead, kLong);
  };
  EXPECT_THROW(call(one, two, outputs, outputs), std::invalid_argument);
  EXPECT_THROW(call({}, {}, outputs, outputs), std::invalid_argument);
  EXPECT_THROW(call(two, two, outputs, outputs), std::invalid_argument);
  EXPECT_THROW(call(one, one, further, outputs), std::invalid_argument);
  EXPECT_THROW(call(one, one, outputs, further), std::invalid_argument);
}

}  // namespace
}  // namespace glimprouter
