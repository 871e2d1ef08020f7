// A device that is lost in the middle: one clear error from then on, and what the host knows stays.
#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../tape_vocabulary.hpp"
#include "device/device_arena.hpp"
#include "device/device_evaluate.hpp"
#include "device/device_sequences.hpp"
#include "device/lost_codes.hpp"
#include "emulator/backend.hpp"
#include "glimprouter/kv_cache.hpp"
#include "glimprouter/kv_ops.hpp"
#include "glimprouter/step_router.hpp"
#include "kv_tensors.hpp"

namespace glimprouter {
namespace {

constexpr std::int32_t kVocabulary = 2100;  // two tiles
const Device kDevice{&simt::backend(), 0}, kOther{&simt::backend(), 1};

using Loss = void (*)(int);
constexpr Loss kLosses[] = {simt::lose_device_at_launch, simt::lose_device_at_wait};

// What a call says of the device that is lost.
template <typename Call>
std::string lost(Call&& call) {
  try {
    call();
  } catch (const DeviceLost& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another error: " << error.what();
    return "";
  }
  ADD_FAILURE() << "no error";
  return "";
}

template <typename Call>
void expect_lost(Call&& call) {
  const std::string message = lost(call);
  EXPECT_EQ(message.find("simt:0 is lost: "), 0u) << message;
  EXPECT_NE(message.find("(cudaErrorIllegalAddress)"), std::string::npos) << message;
  EXPECT_NE(message.find("start it anew"), std::string::npos) << message;
}

class LostDevice : public testing::Test {
 protected:
  void TearDown() override { simt::find_devices(); }
};

class LostRouter : public LostDevice {
 protected:
  StepRouter make(const Device& device) const {
    const auto boundary = TapeVocabulary{kVocabulary}.boundary(kVocabulary);
    return StepRouter(boundary, nullptr, 3, device_steps(device));
  }

  LogitsView view(std::int64_t rows) const {
    return {reinterpret_cast<const char*>(values_.data()), DataType::kFloat32, rows, kVocabulary,
            kVocabulary};
  }

  std::vector<float> values_ = std::vector<float>(4 * kVocabulary, 0.0f);
};

TEST_F(LostRouter, AStepThatDidNotComeBackLeavesTheStateReadable) {
  for (const Loss lose : kLosses) {
    StepRouter router = make(kDevice);
    const std::vector<std::int32_t> rows{router.open({}), router.open({})};
    const std::string before = router.save(rows[0]);
    StepOutputs outputs(3, 0, {});
    const auto step = [&] { router.step(Model::kSmall, view(2), rows, outputs); };
    router.attach_outputs(outputs);
    lose(0);
    expect_lost(step);
    for (int again = 0; again < 2; ++again) {
      expect_lost(step);
      expect_lost([&] { router.open({}); });
      expect_lost([&] { router.fork(rows[0], std::nullopt); });
      expect_lost([&] { router.rewind(rows[0], 0); });
      expect_lost([&] { router.close(rows[1]); });
    }
    EXPECT_EQ(router.rows(), rows);
    EXPECT_EQ(router.pending(Model::kSmall), rows);
    EXPECT_EQ(router.phase(rows[0]), Phase::kGlimpse);
    EXPECT_EQ(router.save(rows[0]), before);
    simt::find_devices();
  }
}

TEST_F(LostRouter, WhatOnlyTheDeviceKnewIsTheSameError) {
  StepRouter router = make(kDevice);
  SequenceOptions options;
  options.limits.route = RouteMode::kSmall;
  const std::vector<std::int32_t> rows{router.open(options)};
  StepOutputs outputs(3, 0, {});
  router.step(Model::kSmall, view(1), rows, outputs);
  const auto waiting = router.pending(Model::kSmall);  // of the outputs, which came back
  EXPECT_EQ(waiting, rows);
  simt::lose_device_at_launch(0);
  expect_lost([&] { router.step(Model::kSmall, view(1), rows, outputs); });
  expect_lost([&] { router.save(rows[0]); });
  EXPECT_EQ(router.pending(Model::kSmall), waiting);
}

TEST_F(LostRouter, VerificationAndDrafts) {
  const std::vector<std::int32_t> counts{3}, none{0}, tokens{1, 2, 3};
  for (const Loss lose : kLosses) {
    StepRouter router = make(kDevice);
    SequenceOptions options;
    options.limits.route = RouteMode::kLarge;
    const std::vector<std::int32_t> rows{router.open(options)};
    const std::string before = router.save(rows[0]);
    StepOutputs outputs(4, 0, {});
    const auto verify = [&] {
      router.verify(Model::kLarge, view(4), {rows, counts, tokens}, outputs);
    };
    const auto draft = [&] { router.draft(Model::kSmall, view(1), {rows, none, {}}, outputs); };
    draft();
    lose(lose == simt::lose_device_at_wait ? 1 : 0);  // behind the memory that drafts need
    expect_lost(verify);
    expect_lost(draft);
    expect_lost(verify);
    EXPECT_EQ(router.save(rows[0]), before);
    simt::find_devices();
  }
}

TEST_F(LostRouter, ALaunchThatIsNotWaitedFor) {
  StepRouter router = make(kDevice);
  const std::vector<std::int32_t> rows{router.open({})};
  StepOutputs outputs(3, 0, {});
  router.attach_outputs(outputs);
  router.launch(Model::kSmall, view(1), rows, nullptr, outputs, nullptr);
  simt::lose_device_at_wait(0);
  expect_lost([&] { router.wait(outputs); });
  expect_lost([&] { router.wait(outputs); });
  expect_lost([&] { router.phase(rows[0]); });
}

TEST_F(LostRouter, AnotherDeviceGoesOn) {
  StepRouter router = make(kDevice), other = make(kOther);
  const std::vector<std::int32_t> rows{router.open({})};
  StepOutputs outputs(3, 0, {}), others(3, 0, {});
  simt::lose_device_at_launch(0);
  expect_lost([&] { router.step(Model::kSmall, view(1), rows, outputs); });
  EXPECT_EQ(other.open({}), 0);
  other.step(Model::kSmall, view(1), rows, others);
  EXPECT_EQ(others.status[0], static_cast<std::uint8_t>(RowStatus::kOk));
}

TEST_F(LostDevice, PassesOverPages) {
  const KvLayout layout = KvLayout::make(1, 1, 16, 4, DataType::kFloat32);
  const auto pool = std::make_shared<PagePool>(std::vector{layout}, 1 << 16, device_arena(kDevice));
  KvCache cache(pool, 2);
  const std::int32_t sequence = cache.open({{1, 2, 3}});
  const RaggedBatch batch = cache.prepare(0, std::span(&sequence, 1));
  simt::HeadsTensor keys(1, {1, 3, 1, 16}, DataType::kFloat32),
      out(2, {1, 3, 1, 16}, DataType::kFloat32);
  const auto append = [&] { append_kv(*pool, {0}, batch, keys.cpu_view(0), keys.cpu_view(0)); };
  const auto attend = [&] {
    paged_attention(*pool, 0, batch, {}, keys.cpu_view(0), out.cpu_view(0));
  };
  append();
  attend();
  const auto before = out.bytes();
  simt::lose_device_at_launch(0);
  expect_lost(attend);
  expect_lost(append);
  expect_lost(attend);
  expect_lost(
      [&] { gather_kv(*pool, 0, {0}, batch.block_table, keys.cpu_view(0), keys.cpu_view(0)); });
  EXPECT_EQ(out.bytes(), before);
  cache.complete(batch);  // tokens and pages are the host's
  EXPECT_EQ(cache.sequence(sequence).caches[0].num_computed_tokens, 3);
  expect_lost([&] { cache.save(sequence); });
  cache.close(sequence);
  cache.check_invariants();
}

TEST_F(LostDevice, RowsOfLogits) {
  const std::vector<float> values(kVocabulary, 0.0f);
  const LogitsView logits{reinterpret_cast<const char*>(values.data()), DataType::kFloat32, 1,
                          kVocabulary, kVocabulary};
  RowResult result{};
  simt::lose_device_at_launch(0);
  for (int again = 0; again < 2; ++again) {
    expect_lost([&] { evaluate_rows(kDevice, logits, {}, {}, &result, nullptr, nullptr); });
  }
}

TEST(LostCodes, OnlyErrorsThatStayLoseADevice) {
  for (const int code : {0, 1, 2, 35, 100, 900, 901, 906, 999}) {  // of them what breaks a capture
    EXPECT_NO_THROW(device::throw_if_lost(code, "cuda:0", "waiting")) << code;
  }
  for (const int code : {214, 700, 702, 714, 716, 719}) {
    EXPECT_THROW(device::throw_if_lost(code, "cuda:0", "waiting"), DeviceLost) << code;
  }
}

}  // namespace
}  // namespace glimprouter
