// What StepRouter::step says about each row: preallocated, one array a column.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "glimprouter/types/step_columns.hpp"

namespace glimprouter {

class DeviceOutputs;

struct StepOutputs : StepColumns<ColumnVector> {
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
    for_columns(*this, *this, [this](const char*, std::uint32_t asked, auto& column, auto&) {
      column.assign(size_of(asked, capacity), 0);
    });
    token.assign(token.size(), -1);
    step_index.assign(step_index.size(), -1);
  }

  bool wants(OutputField field) const { return (fields & static_cast<std::uint32_t>(field)) != 0; }
  // Values of a column in so many rows.
  std::size_t size_of(std::uint32_t asked, std::int64_t rows) const {
    const auto count = static_cast<std::size_t>(rows);
    if (asked == kByIds) return count * logprob_ids.size();
    return asked == 0 || (fields & asked) != 0 ? count : 0;
  }
  ColumnPointers pointers() {
    ColumnPointers result{};
    for_columns(*this, result, [](const char*, std::uint32_t, auto& column, auto& pointer) {
      pointer = column.empty() ? nullptr : column.data();
    });
    return result;
  }

  std::int64_t capacity;
  std::uint32_t fields;                   // OutputField bits
  std::vector<std::int32_t> logprob_ids;  // [ids]

  // For a router on a device: where its launches leave them, and the rows of the last launch.
  std::shared_ptr<DeviceOutputs> device;
  std::vector<std::int32_t> launched_rows;
  std::int64_t launched = 0;
};

}  // namespace glimprouter
