// Numbers that are the same on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace glimprouter {

// Values in [-4, 4), others for each seed.
inline std::vector<float> values_of(std::int64_t count, std::uint64_t seed) {
  std::vector<float> values(static_cast<std::size_t>(count));
  std::uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
  for (float& value : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<float>(static_cast<std::int32_t>(state >> 40) - (1 << 23)) * 0x1.0p-21f;
  }
  return values;
}

}  // namespace glimprouter
