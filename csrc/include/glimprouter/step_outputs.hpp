// What StepRouter::step says about each row: preallocated, one array a field.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "glimprouter/transition.hpp"

namespace glimprouter {

// Statistics on request: one bit each of StepOutputs::fields. What is not asked for is not written,
// and not computed where that saves time.
enum class OutputField : std::uint32_t {
  kLogprob = 1u << 0,
  kLogsumexp = 1u << 1,
  kMaxProb = 1u << 2,
  kMargin = 1u << 3,
  kVarentropy = 1u << 4,
};
inline constexpr std::uint32_t kAllOutputFields = (1u << 5) - 1;

class DeviceOutputs;

struct StepOutputs {
  // capacity: the largest batch. Throws std::invalid_argument when it is negative, or for bits that
  // name no field.
  StepOutputs(std::int64_t capacity_, std::uint32_t fields_, std::vector<std::int32_t> logprob_ids_)
      : capacity(capacity_), fields(fields_), logprob_ids(std::move(logprob_ids_)) {
    if (capacity < 0) {
      throw std::invalid_argument("outputs need a capacity >= 0, got " + std::to_string(capacity));
    }
    if ((fields & ~kAllOutputFields) != 0) {
      throw std::invalid_argument("unknown output fields in the mask " + std::to_string(fields));
    }
    const auto size = static_cast<std::size_t>(capacity);
    token.assign(size, -1);
    step_index.assign(size, -1);
    forced.assign(size, 0);
    for (auto* field : {&status, &route, &phase, &end_reason}) field->assign(size, 0);
    entropy.assign(size, 0);
    if (wants(OutputField::kLogprob)) logprob.assign(size, 0);
    if (wants(OutputField::kLogsumexp)) logsumexp.assign(size, 0);
    if (wants(OutputField::kMaxProb)) max_prob.assign(size, 0);
    if (wants(OutputField::kMargin)) margin.assign(size, 0);
    if (wants(OutputField::kVarentropy)) varentropy.assign(size, 0);
    logprobs.assign(size * logprob_ids.size(), 0);
  }

  bool wants(OutputField field) const { return (fields & static_cast<std::uint32_t>(field)) != 0; }

  std::int64_t capacity;
  std::uint32_t fields;                   // OutputField bits
  std::vector<std::int32_t> logprob_ids;  // [K]

  std::vector<std::int32_t> token;       // committed in this call; -1: none
  std::vector<std::uint8_t> status;      // RowStatus
  std::vector<std::uint8_t> route;       // decision of this call: 0 none, 1 small, 2 large
  std::vector<std::uint8_t> phase;       // after this call
  std::vector<std::uint8_t> end_reason;  // EndReason of the step or answer that ended
  std::vector<std::int32_t> step_index;  // of the step that the token belongs to; -1: answer
  std::vector<std::int32_t> forced;      // closing ids that the caller appends now
  std::vector<float> entropy;            // nats
  // Empty unless wanted:
  std::vector<float> logprob;  // raw, of the committed or candidate token
  std::vector<float> logsumexp;
  std::vector<float> max_prob;
  std::vector<float> margin;
  std::vector<float> varentropy;
  std::vector<float> logprobs;  // [capacity, K] of logprob_ids

  // Of a router on a device: where its launches leave them, and the rows of the last launch.
  std::shared_ptr<DeviceOutputs> device;
  std::vector<std::int32_t> launched_rows;
  std::int64_t launched = 0;
};

}  // namespace glimprouter
