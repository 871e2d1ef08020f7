// What StepRouter::step says about each row: preallocated, one array a field.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "glimprouter/transition.hpp"

namespace glimprouter {

struct StepOutputs {
  // capacity: the largest batch. Throws std::invalid_argument when it is negative.
  StepOutputs(std::int64_t capacity_, bool want_varentropy_, std::vector<std::int32_t> logprob_ids_)
      : capacity(capacity_),
        want_varentropy(want_varentropy_),
        logprob_ids(std::move(logprob_ids_)) {
    if (capacity < 0) {
      throw std::invalid_argument("outputs need a capacity >= 0, got " + std::to_string(capacity));
    }
    const auto size = static_cast<std::size_t>(capacity);
    token.assign(size, -1);
    step_index.assign(size, -1);
    forced.assign(size, 0);
    for (auto* field : {&status, &route, &phase, &end_reason}) field->assign(size, 0);
    for (auto* field : {&entropy, &logprob, &logsumexp, &max_prob, &margin}) field->assign(size, 0);
    if (want_varentropy) varentropy.assign(size, 0);
    logprobs.assign(size * logprob_ids.size(), 0);
  }

  std::int64_t capacity;
  bool want_varentropy;
  std::vector<std::int32_t> logprob_ids;  // [K]

  std::vector<std::int32_t> token;       // committed in this call; -1: none
  std::vector<std::uint8_t> status;      // RowStatus
  std::vector<std::uint8_t> route;       // decision of this call: 0 none, 1 small, 2 large
  std::vector<std::uint8_t> phase;       // after this call
  std::vector<std::uint8_t> end_reason;  // EndReason of the step or answer that ended
  std::vector<std::int32_t> step_index;  // of the step that the token belongs to; -1: answer
  std::vector<std::int32_t> forced;      // closing ids that the caller appends now
  std::vector<float> entropy;            // nats
  std::vector<float> logprob;            // raw, of the committed or candidate token
  std::vector<float> logsumexp;
  std::vector<float> max_prob;
  std::vector<float> margin;
  std::vector<float> varentropy;  // when wanted
  std::vector<float> logprobs;    // [capacity, K] of logprob_ids
};

}  // namespace glimprouter
