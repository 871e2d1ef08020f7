// What a router on a device refuses or reports, and that nothing has changed after it: rows that do
// not wait, memory that is short, what a graph cannot hold.
#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../tape_vocabulary.hpp"
#include "device/device_backend.hpp"
#include "device/device_evaluate.hpp"
#include "device/device_sequences.hpp"
#include "emulator/backend.hpp"
#include "glimprouter/step_router.hpp"

namespace glimprouter {
namespace {

constexpr std::int32_t kVocabulary = 2100;  // two tiles
const Device kDevice{&simt::backend(), 0};

std::shared_ptr<const StepBoundary> make_boundary(std::int32_t vocabulary) {
  return TapeVocabulary{kVocabulary}.boundary(vocabulary);
}

TEST(DeviceRouter, ReportsRowsThatDoNotWaitAndLeavesThemAlone) {
  StepRouter router(make_boundary(kVocabulary), nullptr, 4, device_steps(kDevice));
  const std::int32_t row = router.open({});
  const std::string before = router.save(row);
  const std::vector<float> values(4 * kVocabulary, 0.0f);
  const LogitsView view{reinterpret_cast<const char*>(values.data()), DataType::kFloat32, 4,
                        kVocabulary, kVocabulary};
  StepOutputs outputs(4, kAllOutputFields, {});
  // A row that waits for the other model, one that is not open, and two that are none.
  const std::int32_t named[] = {row, 3, -1, 99};
  router.launch(Model::kLarge, view, {}, named, outputs, nullptr);
  router.wait(outputs);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(outputs.status[i], static_cast<std::uint8_t>(RowStatus::kNotWaiting));
    EXPECT_EQ(outputs.token[i], -1);
  }
  EXPECT_EQ(router.save(row), before);
  const std::int32_t alone[] = {row};
  EXPECT_THROW(router.step(Model::kLarge, {view.data, view.dtype, 1, kVocabulary, kVocabulary},
                           alone, outputs),
               std::invalid_argument);
}

// A graph holds the scratch memory of a step: drafts must not move it.
TEST(DeviceRouter, DraftsLeaveTheMemoryOfStepsWhereItIs) {
  StepRouter router(make_boundary(kVocabulary), nullptr, 1, device_steps(kDevice));
  SequenceOptions options;
  options.limits.route = RouteMode::kLarge;
  const std::vector<std::int32_t> rows{router.open(options)}, counts{3}, tokens{1, 2, 3};
  const std::vector<float> values(4 * kVocabulary, 0.0f);
  const LogitsView view{reinterpret_cast<const char*>(values.data()), DataType::kFloat32, 4,
                        kVocabulary, kVocabulary};
  StepOutputs outputs(4, 0, {});
  router.attach_outputs(outputs);
  simt::pretend_capture(true);
  EXPECT_THROW(router.verify(Model::kLarge, view, {rows, counts, tokens}, outputs),
               std::runtime_error);
  simt::pretend_capture(false);
  router.verify(Model::kLarge, view, {rows, counts, tokens}, outputs);
  simt::pretend_capture(true);  // a step takes no memory, whatever came before
  const LogitsView one{view.data, view.dtype, 1, kVocabulary, kVocabulary};
  router.launch(Model::kLarge, one, rows, nullptr, outputs, nullptr);
  simt::pretend_capture(false);
  router.wait(outputs);
}

TEST(DeviceRouter, OutOfDeviceMemoryIsOneErrorAndChangesNothing) {
  StepRouter router(make_boundary(kVocabulary), nullptr, 2, device_steps(kDevice));
  SequenceOptions options;
  const std::int32_t row = router.open(options);
  const std::string before = router.save(row);
  simt::limit_allocations(1 << 20);
  options.limits.max_think_tokens = 1 << 20;
  EXPECT_THROW(router.open(options), std::runtime_error);
  EXPECT_THROW(StepRouter(make_boundary(kVocabulary), nullptr, 1 << 12, device_steps(kDevice)),
               std::runtime_error);
  simt::limit_allocations(~std::size_t{0});
  EXPECT_EQ(router.rows(), std::vector<std::int32_t>{row});
  EXPECT_EQ(router.save(row), before);
}

TEST(DeviceRouter, WhatAGraphCannotHoldIsRefusedBeforeAnythingChanges) {
  StepRouter router(make_boundary(kVocabulary), nullptr, kRowsByValue + 1, device_steps(kDevice));
  std::vector<std::int32_t> rows;
  for (std::int32_t i = 0; i <= kRowsByValue; ++i) rows.push_back(router.open({}));
  const std::string before = router.save(0);
  const std::vector<float> values(kVocabulary, 0.0f);
  const auto view = [&](std::int64_t count) {
    return LogitsView{reinterpret_cast<const char*>(values.data()), DataType::kFloat32, count,
                      kVocabulary, 0};
  };
  StepOutputs ready(kRowsByValue + 1, 0, {});
  router.attach_outputs(ready);
  StepOutputs without_memory(1, 0, {});
  simt::pretend_capture(true);
  EXPECT_THROW(router.launch(Model::kSmall, view(1), std::span(rows).first(1), nullptr,
                             without_memory, nullptr),
               std::runtime_error);
  EXPECT_THROW(router.launch(Model::kSmall, view(kRowsByValue + 1), rows, nullptr, ready, nullptr),
               std::runtime_error);
  simt::pretend_capture(false);
  EXPECT_EQ(router.save(0), before);
  router.launch(Model::kSmall, view(1), std::span(rows).first(1), nullptr, ready, nullptr);
  EXPECT_NE(router.save(0), before);
}

TEST(Device, RowsWithParametersOfTheirOwnAreNotCaptured) {
  const std::vector<float> values(kVocabulary, 0.0f);
  const LogitsView logits{reinterpret_cast<const char*>(values.data()), DataType::kFloat32, 1,
                          kVocabulary, kVocabulary};
  const std::vector<RowRequest> requests(1);
  RowResult result{};
  const auto evaluate = [&](std::span<const RowRequest> own) {
    evaluate_rows(kDevice, logits, {}, own, &result, nullptr, nullptr);
  };
  evaluate(requests);
  simt::pretend_capture(true);
  EXPECT_NO_THROW(evaluate({}));
  EXPECT_THROW(evaluate(requests), std::runtime_error);
  simt::pretend_capture(false);
}

TEST(Device, NamesThatAreNone) {
  EXPECT_THROW(find_device("tpu:0"), std::invalid_argument);
  EXPECT_THROW(find_device("cuda:x"), std::invalid_argument);
}

}  // namespace
}  // namespace glimprouter
