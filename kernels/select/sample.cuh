// Where in a row a search begins: a sample of it, sorted, says between which two keys a count or a
// mass is reached, so that only the elements between them need bins. Whatever the sample, the
// token is the same.
#pragma once

#include <cstdint>

#include "kernels/select/candidates.cuh"

namespace glimprouter::device {

inline constexpr std::uint32_t kSample = 2048;
inline constexpr std::uint32_t kOwnSample = kSample / kBlockThreads;
static_assert(kSample <= kListCapacity, "the sample lies where the list will");
// A list of so many candidates as are expected fits as a rule.
inline constexpr double kListAim = 0.8 * kListCapacity;

// Spread over the row; not at equal distances, which might be those of a pattern in the vocabulary.
GR_DEVICE std::int32_t sampled_id(std::uint32_t index, std::int64_t size) {
  constexpr int kFraction = 12;
  const std::uint64_t place =
      static_cast<std::uint64_t>(index) << kFraction | index * 0x9E3779B1u >> (32 - kFraction);
  return static_cast<std::int32_t>(place * static_cast<std::uint64_t>(size) / kSample >> kFraction);
}

// Keys of the sampled elements into the list.
GR_DEVICE void take_sample(CandidateShared& shared) {
  const RowView& row = shared.source.row;
  std::int32_t ids[kOwnSample];
  std::uint32_t bits[kOwnSample];
  GR_UNROLL
  for (std::uint32_t k = 0; k < kOwnSample; ++k) {
    ids[k] = sampled_id(threadIdx.x + k * kBlockThreads, row.size);
    bits[k] = read_bits(static_cast<const std::byte*>(row.data) + element_size(row.dtype) * ids[k],
                        row.dtype);
  }
  GR_UNROLL
  for (std::uint32_t k = 0; k < kOwnSample; ++k) {
    shared.list[threadIdx.x + k * kBlockThreads] =
        candidate_of(float_of_bits(bits[k], row.dtype), ids[k]);
  }
}

// Bitonic. A warp's pairs up to 32 apart lie in elements of its own.
GR_DEVICE void sort_sample(CandidateShared& shared) {
  GR_NO_UNROLL
  for (std::uint32_t run = 2; run <= kSample; run *= 2) {
    GR_NO_UNROLL
    for (std::uint32_t distance = run / 2; distance >= 1; distance /= 2) {
      if (distance >= kWarpSize || distance == run / 2) {
        __syncthreads();
      } else {
        __syncwarp();
      }
      GR_UNROLL
      for (std::uint32_t k = 0; k < kSample / 2 / kBlockThreads; ++k) {
        const std::uint32_t pair = threadIdx.x + k * kBlockThreads;
        const std::uint32_t low = 2 * pair - (pair & (distance - 1));
        const Candidate a = shared.list[low];
        const Candidate b = shared.list[low + distance];
        if ((a > b) != ((low & run) != 0)) {
          shared.list[low] = b;
          shared.list[low + distance] = a;
        }
      }
    }
  }
  __syncthreads();
}

// How many keys of the sorted sample lie, in all likelihood, before the crossing; by the best
// guess; and at most.
struct SampleRanks {
  std::uint32_t least;
  std::uint32_t likely;
  std::uint32_t most;
};

// deviations: the error that is reckoned with, in standard deviations. Of a mass the rest behind
// the crossing is estimated: many elements have a part in it, where few may hold the mass before.
GR_DEVICE SampleRanks rank_crossing(Measure measure, std::uint64_t target, double deviations,
                                    CandidateShared& shared) {
  const Limit& limit = shared.limit;
  constexpr int kCoarse = 20;  // so that the sum of squares stays below 2^64
  const double step = static_cast<double>(shared.source.row.size) / kSample;
  const std::uint32_t begin = threadIdx.x * kOwnSample;
  const auto mass_at = [&](std::uint32_t rank) -> Mass {
    const Candidate key = shared.list[rank];
    return key <= limit.key ? shared.source.scale.mass(candidate_value(key)) : 0;
  };
  PrefixSum mass{0, 0};
  PrefixSum squares{0, 0};
  if (measure == Measure::kMass) {
    std::uint64_t own = 0;
    std::uint64_t own_squares = 0;
    GR_NO_UNROLL
    for (std::uint32_t i = begin; i < begin + kOwnSample; ++i) {
      const Mass at = mass_at(i);
      own += at;
      own_squares += (at >> kCoarse) * (at >> kCoarse);
    }
    mass = block_prefix(own, shared.block);
    squares = block_prefix(own_squares, shared.block);
  }
  const double rest = limit.mass > target ? static_cast<double>(limit.mass - target) : 0.0;
  std::uint64_t ranks = 0;  // three numbers of 16 bits
  GR_NO_UNROLL
  for (std::uint32_t i = begin; i < begin + kOwnSample; ++i) {
    double ahead = 0;  // of the crossing, after key i
    double variance = 0;
    if (measure == Measure::kCount) {
      const double count = i + 1;
      ahead = static_cast<double>(target) - count * step;
      variance = count * (1 - count / kSample) + 1;
    } else {
      // The variance is that of the rest with key i: unseen neighbours of it lie on both sides.
      const Mass at = mass_at(i);
      mass.before += at;
      ahead = static_cast<double>(mass.total - mass.before) * step - rest;
      variance = static_cast<double>(squares.total - squares.before) * 0x1p40;
      squares.before += (at >> kCoarse) * (at >> kCoarse);
    }
    const double error = deviations * deviations * step * step * variance;
    const bool sure = ahead * ahead > error;
    ranks += (ahead > 0 && sure ? 1u : 0u) + (ahead > 0 ? 1u << 16 : 0u);
    ranks += ahead < 0 && sure ? 0 : std::uint64_t{1} << 32;
  }
  static_assert(kSample < 1u << 16);
  ranks = block_prefix(ranks, shared.block).total;
  return {static_cast<std::uint32_t>(ranks & 0xFFFFu),
          static_cast<std::uint32_t>(ranks >> 16 & 0xFFFFu),
          static_cast<std::uint32_t>(ranks >> 32)};
}

// Between the sampled keys that the ranks say; from the first candidate of the search's range on
// where a list is expected to hold them all.
GR_DEVICE Window window_of(const SampleRanks& ranks, const CandidateShared& shared) {
  const double step = static_cast<double>(shared.source.row.size) / kSample;
  const auto fitting = static_cast<std::uint32_t>(kListAim / step);
  std::uint32_t end = ranks.most;
  // Sooner a list with less of a margin than none.
  if (end > fitting && ranks.likely + (end - ranks.likely) / 3 <= fitting) end = fitting;
  Window window{shared.lower, shared.upper, {0, 0}};
  if (end < kSample && shared.list[end] < shared.upper) window.upper = shared.list[end];
  if (end > fitting && ranks.least > 0 && shared.list[ranks.least - 1] > shared.lower) {
    window.lower = shared.list[ranks.least - 1];
  }
  if (window.lower < window.upper) return window;
  return {shared.lower, shared.upper, {0, 0}};
}

// The window within the search's range to walk along the row for, and in shared.next the one to
// walk for afterwards, if the sums before it may come from the same walk. A row whose sample
// misleads twice is searched whole. A barrier follows.
GR_DEVICE Window choose_window(std::uint32_t attempt, CandidateShared& shared) {
  const Target& target = shared.target;
  const std::int64_t size = shared.source.row.size;
  Window window{shared.lower, shared.upper, {0, 0}};
  Window next{0, 0, {0, 0}};
  if (size > static_cast<std::int64_t>(kListCapacity) && attempt < 2) {
    __syncthreads();
    take_sample(shared);
    sort_sample(shared);
    const double deviations = attempt == 0 ? 3.0 : 12.0;
    GR_NO_UNROLL
    for (int i = 0; i < (target.next > 0 ? 2 : 1); ++i) {
      const bool first = i == 0;
      const SampleRanks ranks =
          rank_crossing(first ? target.measure : Measure::kMass, first ? target.value : target.next,
                        deviations, shared);
      next = window_of(ranks, shared);
      if (first) window = next;
    }
  }
  const bool follows = target.next > 0 && window.lower > shared.lower && next.lower <= window.upper;
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.next = next;
    if (!follows) shared.next.lower = 0;
  }
  __syncthreads();
  return window;
}

}  // namespace glimprouter::device
