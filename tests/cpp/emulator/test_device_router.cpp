// A StepRouter whose sequences live on the device (here: the emulator) beside one on the CPU:
// the same tape of calls gives the same outputs and the same saved bytes, so the same state.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../tape_vocabulary.hpp"
#include "device/device_backend.hpp"
#include "device/device_sequences.hpp"
#include "emulator/backend.hpp"
#include "glimprouter/step_router.hpp"
#include "lanes.hpp"
#include "router/sequence.hpp"

namespace glimprouter {
namespace {

constexpr std::int32_t kVocabulary = 2100;  // two tiles
constexpr TapeVocabulary kTape{kVocabulary};
const std::int32_t kDelimiter = kTape.delimiter(), kThinkEnd = kTape.think_end(),
                   kEndOfSequence = kTape.end_of_sequence();
constexpr std::int32_t kRows = 5;
constexpr int kDrafts = 4;  // of a row, at most
constexpr std::int32_t kEntries = kRows * (kDrafts + 1);
using simt::kReduced;
const Device kDevice{&simt::backend(), 0};

std::shared_ptr<const StepBoundary> make_boundary(std::int32_t vocabulary) {
  return kTape.boundary(vocabulary);
}

void expect_equal(const StepOutputs& first, const StepOutputs& second, std::size_t rows) {
  const auto same = [rows](const auto& a, const auto& b, std::size_t width, const char* name) {
    ASSERT_EQ(a.size(), b.size()) << name;
    if (a.empty()) return;
    EXPECT_EQ(std::memcmp(a.data(), b.data(), rows * width * sizeof(a[0])), 0) << name;
  };
  same(first.token, second.token, 1, "token");
  same(first.status, second.status, 1, "status");
  same(first.route, second.route, 1, "route");
  same(first.phase, second.phase, 1, "phase");
  same(first.end_reason, second.end_reason, 1, "end_reason");
  same(first.step_index, second.step_index, 1, "step_index");
  same(first.forced, second.forced, 1, "forced");
  same(first.room, second.room, 1, "room");
  same(first.entropy, second.entropy, 1, "entropy");
  same(first.logprob, second.logprob, 1, "logprob");
  same(first.logsumexp, second.logsumexp, 1, "logsumexp");
  same(first.max_prob, second.max_prob, 1, "max_prob");
  same(first.margin, second.margin, 1, "margin");
  same(first.varentropy, second.varentropy, 1, "varentropy");
  same(first.logprobs, second.logprobs, first.logprob_ids.size(), "logprobs");
}

class TwoRouters {
 public:
  explicit TwoRouters(std::uint32_t seed)
      : random_(seed),
        cpu_(make_boundary(kVocabulary), make_boundary(kVocabulary + 300), kRows),
        device_(make_boundary(kVocabulary), make_boundary(kVocabulary + 300), kRows,
                device_steps(kDevice)),
        cpu_outputs_(kEntries, kAllOutputFields, {0, 5}),
        device_outputs_(kEntries, kAllOutputFields, {0, 5}) {}

  void play() {
    const int choice = below(20);
    if (cpu_.rows().empty() || choice < 2) {
      open();
    } else if (choice == 2) {
      const std::int32_t row = any_row();
      cpu_.close(row);
      device_.close(row);
    } else if (choice == 3 && cpu_.rows().size() < kRows) {
      const std::int32_t row = any_row();
      EXPECT_EQ(cpu_.fork(row, std::nullopt), device_.fork(row, std::nullopt));
    } else if (choice == 4) {
      rewind();
    } else if (choice == 5) {
      move_between();
    } else if (choice < 12) {
      draft(static_cast<Model>(below(2)), choice < 8);
    } else {
      step(static_cast<Model>(below(2)));
    }
    compare();
  }

 private:
  int below(int bound) { return static_cast<int>(random_() % static_cast<std::uint32_t>(bound)); }
  std::int32_t any_row() {
    const std::vector<std::int32_t> rows = cpu_.rows();
    return rows[static_cast<std::size_t>(below(static_cast<int>(rows.size())))];
  }

  void open() {
    if (cpu_.rows().size() == kRows) return;
    SequenceOptions options;
    options.limits.threshold = static_cast<float>(below(8));
    options.limits.route = static_cast<RouteMode>(below(4));
    options.limits.max_step_tokens = 1 + below(6);
    options.limits.max_think_tokens = 1 + below(40);
    options.limits.max_answer_tokens = below(5);
    options.limits.answer_model = static_cast<Model>(below(2));
    options.sampling = {below(2) != 0 ? 0.7f : 0.0f, below(2) != 0 ? 0.9f : 1.0f, below(30), 0.0f};
    options.entropy_top_k = below(2) * 20;
    options.seed = random_();
    EXPECT_EQ(cpu_.open(options), device_.open(options));
  }

  void rewind() {
    const std::int32_t row = any_row();
    const int count = below(cpu_.sequence(row).state.position + 1);
    try {
      cpu_.rewind(row, count);
    } catch (const std::invalid_argument&) {
      EXPECT_THROW(device_.rewind(row, count), std::invalid_argument);
      return;
    }
    device_.rewind(row, count);
  }

  // What one saved, the other loads.
  void move_between() {
    const std::int32_t row = any_row();
    const std::string from_device = device_.save(row);
    const std::string from_cpu = cpu_.save(row);
    if (cpu_.rows().size() == kRows) return;
    EXPECT_EQ(cpu_.load(from_device), device_.load(from_cpu));
  }

  std::vector<float> logits(std::size_t rows, std::size_t width) {
    std::vector<float> values(rows * width);
    std::normal_distribution<float> normal(0.0f, 2.5f);
    for (float& value : values) value = normal(random_);
    for (std::size_t i = 0; i < rows; ++i) {
      float* row = values.data() + i * width;
      if (below(3) == 0) row[kDelimiter] = 20.0f;
      if (below(12) == 0) row[kThinkEnd] = 25.0f;
      if (below(20) == 0) row[kEndOfSequence] = 30.0f;
      if (below(15) == 0) row[below(kVocabulary)] = __builtin_nanf("");
    }
    return values;
  }

  void step(Model model) {
    std::vector<std::int32_t> rows = cpu_.pending(model);
    EXPECT_EQ(device_.pending(model), rows);
    std::shuffle(rows.begin(), rows.end(), random_);
    const std::size_t width = kVocabulary + (model == Model::kLarge ? 300 : 0) + 7;
    const std::vector<float> values = logits(rows.size(), width);
    const LogitsView view{reinterpret_cast<const char*>(values.data()), DataType::kFloat32,
                          static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(width),
                          static_cast<std::int64_t>(width)};
    cpu_.step(model, view, rows, cpu_outputs_);
    if (below(2) == 0) {
      device_.step(model, view, rows, device_outputs_);
    } else {
      const bool named_there = below(2) == 0;
      device_.launch(model, view, named_there ? std::span<const std::int32_t>() : rows,
                     named_there ? rows.data() : nullptr, device_outputs_, nullptr);
      device_.wait(device_outputs_);
    }
    expect_equal(cpu_outputs_, device_outputs_, rows.size());
    decide();
  }

  // Verifies drafts that hold more often than not, or draws what the other model would write.
  void draft(Model writer, bool only_draft) {
    std::vector<std::int32_t> rows = cpu_.pending(writer), counts, tokens;
    EXPECT_EQ(device_.pending(writer), rows);
    std::shuffle(rows.begin(), rows.end(), random_);
    for (const std::int32_t row : rows) {
      const Sequence& sequence = cpu_.sequence(row);
      const int room = room_of(sequence.state, sequence.options.limits);
      counts.push_back(below(std::min(room, kDrafts + 1)));
      for (int i = 0; i < counts.back(); ++i) tokens.push_back(drafted_token());
    }
    const auto model = only_draft ? static_cast<Model>(1 - static_cast<int>(writer)) : writer;
    const std::size_t entries = rows.size() + (only_draft ? 0 : tokens.size());
    const std::size_t width = kVocabulary + (model == Model::kLarge ? 300 : 0);
    std::vector<float> values = logits(entries, width);
    if (!only_draft) plant(values, width, counts, tokens);
    const LogitsView view{reinterpret_cast<const char*>(values.data()), DataType::kFloat32,
                          static_cast<std::int64_t>(entries), static_cast<std::int64_t>(width),
                          static_cast<std::int64_t>(width)};
    const DraftedTokens drafts{rows, counts, tokens};
    for (auto [router, outputs] : {std::pair{&cpu_, &cpu_outputs_}, {&device_, &device_outputs_}}) {
      if (only_draft) {
        router->draft(model, view, drafts, *outputs);
      } else {
        router->verify(model, view, drafts, *outputs);
      }
    }
    expect_equal(cpu_outputs_, device_outputs_, entries);
    decide();
  }
  std::int32_t drafted_token() {
    const int kind = below(8);
    return kind == 0 ? kDelimiter : kind == 1 ? kThinkEnd : below(kVocabulary);
  }
  // Makes three of four drafts the likely token of their row.
  void plant(std::vector<float>& values, std::size_t width, const std::vector<std::int32_t>& counts,
             const std::vector<std::int32_t>& tokens) {
    std::size_t entry = 0, next = 0;
    for (const std::int32_t count : counts) {
      for (std::int32_t k = 0; k < count; ++k, ++next, ++entry) {
        if (below(4) != 0) values[entry * width + static_cast<std::size_t>(tokens[next])] = 60.0f;
      }
      ++entry;
    }
  }

  void decide() {
    std::vector<std::int32_t> waiting;
    for (const std::int32_t row : cpu_.rows()) {
      if (cpu_.sequence(row).state.phase == Phase::kAwaitDecision) waiting.push_back(row);
    }
    const auto model = static_cast<Model>(below(2));
    cpu_.decide(model, waiting, cpu_outputs_);
    device_.decide(model, waiting, device_outputs_);
    expect_equal(cpu_outputs_, device_outputs_, waiting.size());
  }

  // Not always: comparing brings the host's copies up to date, which must not be needed.
  void compare() {
    EXPECT_EQ(cpu_.rows(), device_.rows());
    if (below(3) != 0) return;
    for (const std::int32_t row : cpu_.rows()) EXPECT_EQ(cpu_.save(row), device_.save(row));
  }

  std::mt19937 random_;
  StepRouter cpu_;
  StepRouter device_;
  StepOutputs cpu_outputs_;
  StepOutputs device_outputs_;
};

TEST(DeviceRouter, FollowsTheCpuRouterToTheBit) {
  for (const std::uint32_t seed : {1u, 2u, 3u}) {
    TwoRouters routers(seed);
    for (int call = 0; call < (kReduced ? 12 : 150) && !testing::Test::HasFailure(); ++call)
      routers.play();
  }
}

TEST(DeviceRouter, ManyRowsOfOneCall) {
  constexpr std::int32_t kMany = kReduced ? 20 : kRowsByValue + 44;
  const auto boundary = make_boundary(kVocabulary);
  StepRouter device(boundary, nullptr, kMany, device_steps(kDevice));
  StepRouter cpu(boundary, nullptr, kMany);
  std::vector<std::int32_t> rows;
  for (std::int32_t i = 0; i < kMany; ++i) {
    SequenceOptions options;
    options.sampling.temperature = 1.0f;
    options.substream = static_cast<std::uint64_t>(i);
    cpu.open(options);
    rows.push_back(device.open(options));
  }
  const std::vector<float> row_of_logits(kVocabulary, 0.25f);
  const LogitsView view{reinterpret_cast<const char*>(row_of_logits.data()), DataType::kFloat32,
                        kMany, kVocabulary, 0};
  StepOutputs outputs(kMany, 0, {});
  StepOutputs expected(kMany, 0, {});
  device.step(Model::kSmall, view, rows, outputs);
  cpu.step(Model::kSmall, view, rows, expected);
  expect_equal(outputs, expected, kMany);
}

TEST(DeviceRouter, ACopyThatFailsChangesNothing) {
  StepRouter router(make_boundary(kVocabulary), nullptr, 3, device_steps(kDevice));
  StepRouter untroubled(make_boundary(kVocabulary), nullptr, 3, device_steps(kDevice));
  std::vector<std::int32_t> rows{router.open({})};
  untroubled.open({});
  const std::string before = router.save(rows[0]);
  const auto fails = [&](int failing, auto&& call) {
    simt::fail_copy(failing);
    EXPECT_THROW(call(), std::runtime_error);
    simt::fail_copy(-1);
    EXPECT_EQ(router.rows(), rows);
    EXPECT_EQ(router.save(rows[0]), before);
  };
  for (const int failing : {0, 1}) {  // the core, and that the row is open
    fails(failing, [&] { router.open({}); });
    fails(failing, [&] { router.fork(rows[0], std::nullopt); });
    fails(failing, [&] { router.load(before); });
  }
  fails(0, [&] { router.rewind(rows[0], 0); });
  fails(0, [&] { router.close(rows[0]); });
  rows.push_back(router.fork(rows[0], std::nullopt));
  EXPECT_EQ(untroubled.fork(0, std::nullopt), rows[1]);
  std::vector<float> logits(2 * kVocabulary);
  logits[7] = logits[kVocabulary + 9] = 5.0f;
  StepOutputs outputs(2, kAllOutputFields, {}), expected(2, kAllOutputFields, {});
  const LogitsView view{reinterpret_cast<const char*>(logits.data()), DataType::kFloat32, 2,
                        kVocabulary, kVocabulary};
  router.step(Model::kSmall, view, rows, outputs);
  untroubled.step(Model::kSmall, view, rows, expected);
  expect_equal(outputs, expected, 2);
  for (const std::int32_t row : rows) EXPECT_EQ(router.save(row), untroubled.save(row));
}

}  // namespace
}  // namespace glimprouter
