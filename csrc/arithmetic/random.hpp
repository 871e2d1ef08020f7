// Counter-based randomness: Philox4x32-10 (Salmon et al., SC 2011). A draw depends on its key
// alone, never on the batch, the order of calls or the number of threads.
#pragma once

#include <cstdint>

#include "glimprouter/types/host_device.hpp"
#include "glimprouter/types/row_types.hpp"

namespace glimprouter {

struct PhiloxBlock {
  std::uint32_t word[4];
};

// Ten rounds over a 128-bit counter with a 64-bit key.
GR_HOST_DEVICE inline PhiloxBlock philox4x32(PhiloxBlock counter, std::uint64_t key) {
  std::uint32_t key_low = static_cast<std::uint32_t>(key);
  std::uint32_t key_high = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53u} * counter.word[0];
    const std::uint64_t second = std::uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = PhiloxBlock{{static_cast<std::uint32_t>(second >> 32) ^ counter.word[1] ^ key_low,
                           static_cast<std::uint32_t>(second),
                           static_cast<std::uint32_t>(first >> 32) ^ counter.word[3] ^ key_high,
                           static_cast<std::uint32_t>(first)}};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

// Uniform in [0, 1) with 53 random bits. Two rounds of Philox, because the key material (seed,
// substream, position, purpose) is wider than one block takes: the first hashes seed and substream
// into the key of the second.
GR_HOST_DEVICE inline double uniform_double(const RandomKey& key) {
  const PhiloxBlock sequence = philox4x32(
      PhiloxBlock{{static_cast<std::uint32_t>(key.substream),
                   static_cast<std::uint32_t>(key.substream >> 32), 0x676C696Du, 0x70736521u}},
      key.seed);
  const std::uint64_t sequence_key =
      (static_cast<std::uint64_t>(sequence.word[1]) << 32) | sequence.word[0];
  const PhiloxBlock draw = philox4x32(
      PhiloxBlock{{static_cast<std::uint32_t>(key.position),
                   static_cast<std::uint32_t>(key.position >> 32), key.purpose, sequence.word[2]}},
      sequence_key);
  const std::uint64_t bits = (static_cast<std::uint64_t>(draw.word[1]) << 32) | draw.word[0];
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

}  // namespace glimprouter
