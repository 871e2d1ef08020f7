// A long random tape of calls on one router: what the sanitizers watch, and what must hold after
// any of them (a rewound sequence writes the same again, a saved one comes back bit for bit, a
// refused call changes nothing). Rules are checked in Python against an independent model.
#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "glimprouter/step_router.hpp"
#include "router/sequence.hpp"
#include "tape_vocabulary.hpp"

namespace glimprouter {
namespace {

constexpr std::int32_t kVocabulary = 3000;  // two tiles
constexpr TapeVocabulary kTape{kVocabulary};
const std::int32_t kDelimiter = kTape.delimiter(), kThinkEnd = kTape.think_end(),
                   kEndOfSequence = kTape.end_of_sequence();
constexpr std::int32_t kRows = 6;

std::shared_ptr<const StepBoundary> make_boundary() { return kTape.boundary(kVocabulary); }

class Tape {
 public:
  explicit Tape(std::uint32_t seed)
      : random_(seed),
        router_(make_boundary(), nullptr, kRows),
        outputs_(kRows * 5, kAllOutputFields, {0, 5}) {}

  void run(int calls) {
    for (int i = 0; i < calls; ++i) play_one();
  }

 private:
  int below(int bound) { return static_cast<int>(random_() % static_cast<std::uint32_t>(bound)); }
  std::int32_t any_row() {
    const std::vector<std::int32_t> rows = router_.rows();
    return rows[static_cast<std::size_t>(below(static_cast<int>(rows.size())))];
  }
  bool full() { return router_.rows().size() == kRows; }

  void play_one() {
    const int choice = below(20);
    if (router_.rows().empty() || choice < 2) {
      open();
    } else if (choice == 6) {
      router_.close(any_row());
    } else if (choice == 2 && !full()) {
      EXPECT_NE(router_.fork(any_row(), std::nullopt), -1);
    } else if (choice == 3) {
      save_and_load();
    } else if (choice == 4) {
      rewind_and_repeat();
    } else if (choice == 5) {
      damaged_state();
    } else if (choice >= 16) {
      verify(choice % 2 == 0 ? Model::kLarge : Model::kSmall);
    } else {
      step(choice % 3 == 0 ? Model::kLarge : Model::kSmall);
    }
  }

  void open() {
    if (full()) {
      EXPECT_THROW(router_.open({}), std::runtime_error);
      return;
    }
    SequenceOptions options;
    options.limits.threshold = static_cast<float>(below(8));
    options.limits.route = static_cast<RouteMode>(below(4));
    options.limits.max_step_tokens = 1 + below(6);
    options.limits.max_think_tokens = 1 + below(40);
    options.limits.max_answer_tokens = below(5);
    options.limits.first_steps_large = below(2);
    options.limits.large_tokens = below(3);
    options.limits.answer_model = static_cast<Model>(below(2));
    options.sampling = {below(2) != 0 ? 0.7f : 0.0f, below(2) != 0 ? 0.9f : 1.0f, below(30), 0.0f};
    options.entropy_top_k = below(2) * 20;
    options.seed = random_();
    router_.open(options);
  }

  std::vector<float> logits(std::size_t count) {
    std::vector<float> values(count * kVocabulary);
    std::normal_distribution<float> normal(0.0f, 2.5f);
    for (float& value : values) value = normal(random_);
    for (std::size_t i = 0; i < count; ++i) {
      float* row = values.data() + i * kVocabulary;
      if (below(3) == 0) row[kDelimiter] = 20.0f;
      if (below(12) == 0) row[kThinkEnd] = 25.0f;
      if (below(20) == 0) row[kEndOfSequence] = 30.0f;
      if (below(15) == 0) row[below(kVocabulary)] = __builtin_nanf("");
    }
    return values;
  }

  void call(Model model, const std::vector<float>& values, const std::vector<std::int32_t>& rows) {
    const LogitsView view{reinterpret_cast<const char*>(values.data()), DataType::kFloat32,
                          static_cast<std::int64_t>(rows.size()), kVocabulary, kVocabulary};
    router_.step(model, view, rows, outputs_);
  }

  void step(Model model) {
    std::vector<std::int32_t> rows = router_.pending(model);
    std::shuffle(rows.begin(), rows.end(), random_);
    call(model, logits(rows.size()), rows);
    std::vector<std::int32_t> waiting;
    for (const std::int32_t row : router_.rows()) {
      if (router_.sequence(row).state.phase == Phase::kAwaitDecision) waiting.push_back(row);
    }
    router_.decide(below(2) != 0 ? Model::kLarge : Model::kSmall, waiting, outputs_);
    for (const std::int32_t row : router_.rows()) {
      if (router_.sequence(row).state.phase == Phase::kDone && below(3) == 0) router_.close(row);
    }
  }

  // The drafts are what a copy of the row writes step by step, some of them changed: it must end
  // where as many steps of another copy end.
  void verify(Model model) {
    const std::vector<std::int32_t> rows = router_.pending(model);
    if (rows.empty() || router_.rows().size() + 2 > kRows) return;
    const std::int32_t row = rows[static_cast<std::size_t>(below(static_cast<int>(rows.size())))];
    const Sequence& sequence = router_.sequence(row);
    const int count = below(std::min(room_of(sequence.state, sequence.options.limits), 5));
    const std::vector<float> values = logits(static_cast<std::size_t>(count) + 1);
    const std::string before = router_.save(row);
    const std::int32_t model_row = router_.load(before);
    std::vector<std::int32_t> drafts;
    for (int k = 0; k < count; ++k) {
      const std::vector<std::int32_t> waiting = router_.pending(model);
      if (std::find(waiting.begin(), waiting.end(), model_row) == waiting.end()) break;
      call(model, row_of(values, k), {model_row});
      drafts.push_back(below(6) != 0 && outputs_.token[0] >= 0 ? outputs_.token[0]
                                                               : below(kVocabulary));
    }
    router_.close(model_row);
    const auto drafted = static_cast<std::int32_t>(drafts.size());
    const std::vector<std::int32_t> named{row}, counts{drafted};
    const LogitsView view{reinterpret_cast<const char*>(values.data()), DataType::kFloat32,
                          drafted + 1, kVocabulary, kVocabulary};
    router_.verify(model, view, {named, counts, drafts}, outputs_);
    int reached = 0;
    while (reached <= drafted && outputs_.status[static_cast<std::size_t>(reached)] !=
                                     static_cast<std::uint8_t>(RowStatus::kNotReached)) {
      ++reached;
    }
    EXPECT_GE(reached, 1);
    const std::int32_t steps_row = router_.load(before);
    for (int k = 0; k < reached; ++k) call(model, row_of(values, k), {steps_row});
    EXPECT_EQ(router_.save(row), router_.save(steps_row));
    router_.close(steps_row);
  }
  static std::vector<float> row_of(const std::vector<float>& values, int row) {
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(row) * kVocabulary;
    return {begin, begin + kVocabulary};
  }

  void save_and_load() {
    const std::string saved = router_.save(any_row());
    if (full()) return;
    const std::int32_t copy = router_.load(saved);
    EXPECT_EQ(router_.save(copy), saved);
    router_.close(copy);
  }

  void rewind_and_repeat() {
    const std::int32_t row = any_row();
    const std::string before = router_.save(row);
    const std::int32_t position = router_.sequence(row).state.position;
    EXPECT_THROW(router_.rewind(row, position + 1), std::invalid_argument);
    EXPECT_EQ(router_.save(row), before);
    const Model model =
        router_.sequence(row).state.phase == Phase::kLargeStep ? Model::kLarge : Model::kSmall;
    const std::vector<std::int32_t> pending = router_.pending(model);
    if (std::find(pending.begin(), pending.end(), row) == pending.end()) return;
    const std::vector<float> values = logits(1);
    call(model, values, {row});
    const std::int32_t token = outputs_.token[0];
    if (token < 0 || outputs_.forced[0] != 0) return;
    router_.rewind(row, 1);
    EXPECT_EQ(router_.sequence(row).state.position, position);
    const std::vector<std::int32_t> again = router_.pending(model);
    if (std::find(again.begin(), again.end(), row) == again.end()) return;  // undecided again
    call(model, values, {row});
    EXPECT_EQ(outputs_.token[0], token);
  }

  void damaged_state() {
    std::string saved = router_.save(any_row());
    const auto place = static_cast<std::size_t>(below(static_cast<int>(saved.size())));
    const std::vector<std::int32_t> rows = router_.rows();
    saved[place] = static_cast<char>(saved[place] ^ (1 << below(8)));
    EXPECT_THROW(router_.load(saved), std::invalid_argument);
    saved.resize(place);
    EXPECT_THROW(router_.load(saved), std::invalid_argument);
    EXPECT_EQ(router_.rows(), rows);
  }

  std::mt19937 random_;
  StepRouter router_;
  StepOutputs outputs_;
};

TEST(StepRouter, LongTapes) {
  for (std::uint32_t seed = 0; seed < 4; ++seed) Tape(seed).run(1500);
}

// The library's threads share one batch; the sanitizer of this lane sees a race if there is one.
TEST(StepRouter, SeveralThreadsShareABatch) {
  const auto boundary = make_boundary();
  constexpr int kBatch = 40;
  std::vector<float> values(std::size_t{kBatch} * kVocabulary);
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 2.5f);
  for (float& value : values) value = normal(random);
  const auto tokens = [&](int threads) {
    set_num_threads(threads);
    StepRouter router(boundary, nullptr, kBatch);
    StepOutputs outputs(kBatch, kAllOutputFields, {});
    SequenceOptions options;
    options.limits.route = RouteMode::kSmall;
    options.sampling.temperature = 0.8f;
    std::vector<std::int32_t> rows;
    for (int i = 0; i < kBatch; ++i) rows.push_back(router.open(options));
    std::vector<std::int32_t> written;
    for (int turn = 0; turn < 5; ++turn) {
      const std::vector<std::int32_t> waiting = router.pending(Model::kSmall);
      const LogitsView view{reinterpret_cast<const char*>(values.data()), DataType::kFloat32,
                            static_cast<std::int64_t>(waiting.size()), kVocabulary, kVocabulary};
      router.step(Model::kSmall, view, waiting, outputs);
      written.insert(written.end(), outputs.token.begin(), outputs.token.end());
    }
    set_num_threads(1);
    return written;
  };
  EXPECT_EQ(tokens(1), tokens(4));
}

TEST(StepRouter, BelongsToOneThread) {
  StepRouter router(make_boundary(), nullptr, 1);
  const std::int32_t row = router.open({});
  const auto elsewhere = [&](auto&& body) { std::async(std::launch::async, body).get(); };
  elsewhere([&] {
    EXPECT_THROW(router.pending(Model::kSmall), std::runtime_error);
    EXPECT_THROW(router.close(row), std::runtime_error);
    router.attach();
    EXPECT_EQ(router.pending(Model::kSmall).size(), 1u);
  });
  EXPECT_THROW(router.pending(Model::kSmall), std::runtime_error);
  router.attach();
  EXPECT_EQ(router.pending(Model::kSmall).size(), 1u);
}

}  // namespace
}  // namespace glimprouter
