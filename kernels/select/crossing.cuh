// Where the candidates of a row, in descending order, reach a count or a mass: a descent over their
// keys that splits the range in question into 1024 bins, then sorts the few that one bin holds.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/select/candidates.cuh"

namespace glimprouter::device {

enum class Measure : std::uint8_t { kCount, kMass };

GR_DEVICE std::uint64_t measured(Measure measure, std::uint64_t count, Mass mass) {
  return measure == Measure::kCount ? count : mass;
}

// The bits of a key below which a bin does not look, for a range of keys [lower, upper].
GR_DEVICE std::uint32_t bin_shift(Candidate lower, Candidate upper) {
  // Not std::countl_zero: nvcc compiles it for a device without a word, to something else.
  const auto bits = static_cast<std::uint32_t>(64 - __clzll(static_cast<long long>(upper - lower)));
  constexpr auto kBits = static_cast<std::uint32_t>(std::countr_zero(kBins));
  return bits > kBits ? bits - kBits : 0;
}

// Count and mass of neighbouring candidates of one thread that fall into one bin, before they are
// added to it: a uniform row would have all threads at one address for every element.
struct BinRun {
  std::uint32_t bin = 0;
  std::uint32_t count = 0;
  Mass mass = 0;

  GR_DEVICE void flush(CandidateShared& shared) {
    if (count == 0) return;
    atomic_add_shared(&shared.bins.count[bin], count);
    atomic_add_shared(&shared.bins.mass[bin], mass);
    count = 0;
    mass = 0;
  }
  GR_DEVICE void add(std::uint32_t of_bin, Mass of_mass, CandidateShared& shared) {
    if (of_bin != bin) flush(shared);
    bin = of_bin;
    ++count;
    mass += of_mass;
  }
};

GR_DEVICE void fill_bins(Candidate lower, Candidate upper, std::uint32_t shift,
                         CandidateShared& shared) {
  __syncthreads();
  for (std::uint32_t bin = threadIdx.x; bin < kBins; bin += kBlockThreads) {
    shared.bins.mass[bin] = 0;
    shared.bins.count[bin] = 0;
  }
  __syncthreads();
  BinRun run;
  for_candidates(shared, lower, upper, [&](Candidate key) {
    run.add(static_cast<std::uint32_t>((key - lower) >> shift),
            shared.source.scale.mass(candidate_value(key)), shared);
  });
  run.flush(shared);
  __syncthreads();
}

// The bin in which the target is reached: its number into shared.crossing.key, what lies before it
// into the crossing's sums. Returns the totals of all bins.
GR_DEVICE Totals find_bin(const Totals& before, Measure measure, std::uint64_t target,
                          CandidateShared& shared) {
  constexpr std::uint32_t kOwn = kBins / kBlockThreads;
  Totals own{0, 0};
  for (std::uint32_t i = 0; i < kOwn; ++i) {
    own.count += shared.bins.count[threadIdx.x * kOwn + i];
    own.mass += shared.bins.mass[threadIdx.x * kOwn + i];
  }
  const PrefixSum counts = block_prefix(own.count, shared.block);
  const PrefixSum masses = block_prefix(own.mass, shared.block);
  Totals through{before.count + counts.before, before.mass + masses.before};
  const bool reached_before = measured(measure, through.count, through.mass) >= target;
  for (std::uint32_t i = 0; i < kOwn && !reached_before; ++i) {
    const std::uint32_t bin = threadIdx.x * kOwn + i;
    const Totals next{through.count + shared.bins.count[bin], through.mass + shared.bins.mass[bin]};
    if (measured(measure, next.count, next.mass) >= target) {
      shared.crossed = true;
      shared.crossing = {bin, through.mass, through.count};
      shared.bin_count = shared.bins.count[bin];
      break;
    }
    through = next;
  }
  __syncthreads();
  return {before.count + counts.total, before.mass + masses.total};
}

// The crossing among at most kFew candidates with keys in [lower, upper], which are sorted by rank.
GR_DEVICE void cross_few(Candidate lower, Candidate upper, const Totals& before, Measure measure,
                         std::uint64_t target, CandidateShared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.bin_count = 0;
    shared.crossed = false;
  }
  __syncthreads();
  for_candidates(shared, lower, upper, [&](Candidate key) {
    shared.found[atomic_add_shared(&shared.bin_count, 1u)] = key;
  });
  __syncthreads();
  const std::uint32_t count = shared.bin_count;
  const std::uint32_t own = threadIdx.x;
  if (own < count) {
    std::uint32_t rank = 0;
    for (std::uint32_t i = 0; i < count; ++i) {
      rank += shared.found[i] < shared.found[own] ? 1 : 0;
    }
    shared.sorted[rank] = shared.found[own];
  }
  __syncthreads();
  const Candidate key = own < count ? shared.sorted[own] : kLastCandidate;
  const Mass mass = own < count ? shared.source.scale.mass(candidate_value(key)) : 0;
  const PrefixSum masses = block_prefix(mass, shared.block);
  if (own < count) {
    const Totals through{before.count + own + 1, before.mass + masses.before + mass};
    const std::uint64_t reached = measured(measure, through.count, through.mass);
    if (reached >= target && reached - (measure == Measure::kCount ? 1 : mass) < target) {
      shared.crossed = true;
      shared.crossing = {key, through.mass, through.count};
    }
  }
  __syncthreads();
  if (threadIdx.x == 0 && !shared.crossed) {
    shared.crossing = {kLastCandidate, before.mass + masses.total, before.count + count};
  }
  __syncthreads();
}

// Leaves in shared.crossing the first candidate with which the count, or the mass, reaches the
// target (at least 1), and both sums up to it. Where all candidates together do not reach it:
// kLastCandidate, and their sums. By the whole block; a barrier follows.
GR_DEVICE void find_crossing(Measure measure, std::uint64_t target, CandidateShared& shared) {
  Candidate lower = candidate_of(shared.source.scale.maximum, 0);
  Candidate upper = shared.source.listed ? shared.last : kLastCandidate;
  Totals before{0, 0};
  bool few = shared.source.listed && shared.count <= kFew;
  for (bool whole = true; !few; whole = false) {
    const std::uint32_t shift = bin_shift(lower, upper);
    if (!whole || !shared.binned) fill_bins(lower, upper, shift, shared);
    __syncthreads();
    if (threadIdx.x == 0) {
      shared.crossed = false;
      shared.binned = whole;
    }
    __syncthreads();
    const Totals all = find_bin(before, measure, target, shared);
    if (!shared.crossed) {
      before = all;
      lower = upper = kLastCandidate;  // nothing is left
      break;
    }
    before = {shared.crossing.count, shared.crossing.mass};
    few = shared.bin_count <= kFew;
    lower += shared.crossing.key << shift;
    const Candidate last = lower + ((Candidate{1} << shift) - 1);
    upper = last < lower || last > upper ? upper : last;
  }
  cross_few(lower, upper, before, measure, target, shared);
}

}  // namespace glimprouter::device
