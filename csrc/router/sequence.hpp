// What a router keeps of a sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "router/sequence_step.hpp"

namespace glimprouter {

struct Sequence : SequenceCore {
  bool open = false;
  std::uint64_t forks = 0;       // makes the default substreams of forks distinct
  std::vector<TokenRecord> log;  // reserved when the sequence is opened
  std::uint64_t last_call = 0;   // finds a row named twice in one call
  bool stale = false;            // the device has a newer core and log
  bool phase_known = true;       // state.phase is that of the device, and so is
  std::int32_t known_room = 0;   // the room that it has, where it is stale
};

// Tokens that a sequence may commit, or has committed.
inline std::int64_t most_tokens(const Sequence& sequence) {
  const SequenceLimits& limits = sequence.options.limits;
  const std::int64_t allowed =
      static_cast<std::int64_t>(limits.max_think_tokens) + limits.max_answer_tokens;
  const auto committed = static_cast<std::int64_t>(sequence.log.size());
  return allowed > committed ? allowed : committed;
}

}  // namespace glimprouter
