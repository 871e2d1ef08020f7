// The vocabulary of the router's tapes: numbers as text, one delimiter, the end of thinking, the
// end of the sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "glimprouter/step_boundary.hpp"

namespace glimprouter {

// The last three of the first `words` ids are the special ones.
struct TapeVocabulary {
  std::int32_t words;

  std::int32_t delimiter() const { return words - 3; }
  std::int32_t think_end() const { return words - 2; }
  std::int32_t end_of_sequence() const { return words - 1; }

  // size: of the vocabulary, >= words.
  std::shared_ptr<const StepBoundary> boundary(std::int32_t size) const {
    StepBoundary::Definition definition;
    for (std::int32_t token = 0; token < size; ++token) {
      definition.token_bytes.emplace_back(std::to_string(token).append("x"));
    }
    const auto at = [&](std::int32_t token) -> auto& {
      return definition.token_bytes[static_cast<std::size_t>(token)];
    };
    at(delimiter()) = ".\n\n";
    at(think_end()).reset();
    at(end_of_sequence()).reset();
    definition.delimiters = {"\n\n"};
    definition.think_end_ids = {think_end()};
    definition.eos_ids = {end_of_sequence()};
    definition.close_ids = {0, think_end(), delimiter()};
    return std::make_shared<StepBoundary>(std::move(definition));
  }
};

}  // namespace glimprouter
