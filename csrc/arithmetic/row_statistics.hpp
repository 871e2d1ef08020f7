// From the sums of a row to its statistics: the last part of the row operation, shared by host and
// device.
#pragma once

#include <bit>
#include <cstdint>

#include "arithmetic/fixed_mass.hpp"
#include "arithmetic/numeric.hpp"
#include "arithmetic/tile_statistics.hpp"
#include "glimprouter/types/host_device.hpp"
#include "glimprouter/types/row_types.hpp"

namespace glimprouter {

inline constexpr float kNotANumber = std::bit_cast<float>(0x7FC00000u);

GR_HOST_DEVICE inline RowResult invalid_result(RowStatus status) {
  return RowResult{status,      -1,          -1,          kNotANumber, kNotANumber,
                   kNotANumber, kNotANumber, kNotANumber, kNotANumber};
}

GR_HOST_DEVICE inline bool is_tempered(const SamplingParameters& sampling) {
  return sampling.temperature != 0.0f && sampling.temperature != 1.0f;
}

// A restricted top-k needs no total over the row.
GR_HOST_DEVICE inline bool restricts_count(const SamplingParameters& sampling, std::int64_t size) {
  return sampling.top_k > 0 && sampling.top_k < size;
}

// ln of the row's sum is kept in double, since both entropy and log-probabilities need it.
struct RowScale {
  float maximum;
  double log_sum;

  GR_HOST_DEVICE float logprob(float logit) const {
    return static_cast<float>(static_cast<double>(logit - maximum) - log_sum);
  }
};

// What the statistics of a row are made of.
struct RowQuotients {
  double log_sum;
  double mean;         // of x - maximum
  double mean_square;  // of its square, when asked for
  double inverse;      // of the sum
};

GR_HOST_DEVICE inline RowQuotients quotients_of(const RowSums& sums) {
  return {log_positive(sums.sum), sums.weighted / sums.sum, sums.squared / sums.sum,
          1.0 / sums.sum};
}

// Everything but the token and its log-probability. second: the largest element but the first
// maximum. The entropy is that of the whole row.
GR_HOST_DEVICE inline RowResult statistics_of(const RowSums& sums, const RowQuotients& quotients,
                                              std::int32_t argmax, float second,
                                              bool want_varentropy) {
  RowResult result{};
  result.status = RowStatus::kOk;
  result.argmax = result.token = argmax;
  result.entropy = static_cast<float>(quotients.log_sum - quotients.mean);
  result.logsumexp = static_cast<float>(static_cast<double>(sums.maximum) + quotients.log_sum);
  result.max_prob = static_cast<float>(quotients.inverse);
  const auto runner_up = static_cast<double>(exp_nonpositive(second - sums.maximum));
  result.margin = static_cast<float>((1.0 - runner_up) * quotients.inverse);
  const double variance = quotients.mean_square - quotients.mean * quotients.mean;
  result.varentropy =
      want_varentropy ? static_cast<float>(variance > 0.0 ? variance : 0.0) : kNotANumber;
  return result;
}

// The k largest elements for an entropy over them alone: sums in fixed point, in any order.
struct TopMass {
  Mass sum = 0;       // sum e^d
  Mass weighted = 0;  // sum -d e^d

  // d: element - maximum, at most 0; weight: e^d.
  GR_HOST_DEVICE void add(float d, float weight) {
    if (!(weight > 0.0f)) return;
    sum += mass_of(weight);
    weighted += mass_of(-d * weight);
  }

  // Nats, renormalised.
  GR_HOST_DEVICE double entropy() const {
    return log_positive(weight_of(sum)) + static_cast<double>(weighted) / static_cast<double>(sum);
  }
};

}  // namespace glimprouter
