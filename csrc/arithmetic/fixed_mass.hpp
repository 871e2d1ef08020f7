// Probability mass in fixed point. Integers add up to the same total in any order, so a device may
// sum, count and search in parallel what the CPU adds one by one.
#pragma once

#include <cstdint>

#include "glimprouter/types/host_device.hpp"

namespace glimprouter {

// A weight e^((x - maximum) / T) in units of 2^-40: 1 for the row's maximum. What weighs less than
// a unit has no mass, and is never drawn.
using Mass = std::uint64_t;
inline constexpr float kMassUnits = 0x1p40f;

// A whole row of maxima stays far below 2^64.
inline constexpr std::int64_t kMaxVocabulary = std::int64_t{1} << 22;

// weight: [0, 1]. Exact but for the units that are cut off.
GR_HOST_DEVICE inline Mass mass_of(float weight) {
  return static_cast<Mass>(static_cast<std::int64_t>(weight * kMassUnits));
}

// Converts a sum of weights.
GR_HOST_DEVICE inline Mass mass_of_sum(double weights) {
  return static_cast<Mass>(static_cast<std::int64_t>(weights * static_cast<double>(kMassUnits)));
}

GR_HOST_DEVICE inline double weight_of(Mass mass) {
  return static_cast<double>(mass) / static_cast<double>(kMassUnits);
}

// The least mass that counts as the fraction p of the total; at least one unit.
GR_HOST_DEVICE inline Mass mass_target(float p, Mass total) {
  const double wanted = static_cast<double>(p) * static_cast<double>(total);
  const auto whole = static_cast<Mass>(static_cast<std::int64_t>(wanted));
  const Mass target = static_cast<double>(whole) < wanted ? whole + 1 : whole;
  return target > 0 ? target : 1;
}

// The unit that a uniform number of [0, 1) points at: what holds it is drawn. total >= 1.
GR_HOST_DEVICE inline Mass drawn_unit(double uniform, Mass total) {
  const auto unit =
      static_cast<Mass>(static_cast<std::int64_t>(uniform * static_cast<double>(total)));
  return unit < total ? unit : total - 1;
}

}  // namespace glimprouter
