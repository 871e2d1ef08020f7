// Where the candidates of a row, in descending order, reach a count or a mass: in a window of keys
// that a walk along the row has split into bins; then in a bin, whose candidates are listed; and
// the few that one bin of a list holds are sorted.
#pragma once

#include <cstdint>

#include "kernels/select/candidates.cuh"
#include "kernels/select/sample.cuh"

namespace glimprouter::device {

// The bin in which the target is reached: its number into shared.crossing.key, what lies before it
// into the crossing's sums. Returns the totals of all bins.
GR_DEVICE Totals find_bin(const Totals& before, Measure measure, std::uint64_t target,
                          CandidateShared& shared) {
  constexpr std::uint32_t kOwn = kBins / kBlockThreads;
  __syncthreads();
  if (threadIdx.x == 0) shared.crossed = false;
  Totals own{0, 0};
  for (std::uint32_t i = 0; i < kOwn; ++i) {
    own.count += shared.bins.count[threadIdx.x * kOwn + i];
    own.mass += shared.bins.mass[threadIdx.x * kOwn + i];
  }
  const PrefixSum counts = block_prefix(own.count, shared.block);
  const PrefixSum masses = block_prefix(own.mass, shared.block);
  Totals through{before.count + counts.before, before.mass + masses.before};
  const bool reached_before = measured(measure, through) >= target;
  for (std::uint32_t i = 0; i < kOwn && !reached_before; ++i) {
    const std::uint32_t bin = threadIdx.x * kOwn + i;
    const Totals next{through.count + shared.bins.count[bin], through.mass + shared.bins.mass[bin]};
    if (measured(measure, next) >= target) {
      shared.crossed = true;
      shared.crossing = {bin, through};
      shared.bin_count = shared.bins.count[bin];
      break;
    }
    through = next;
  }
  __syncthreads();
  return {before.count + counts.total, before.mass + masses.total};
}

// The crossing among at most kFew listed candidates with keys in [lower, upper], which are sorted
// by rank.
GR_DEVICE void cross_few(const Window& range, Measure measure, std::uint64_t target,
                         CandidateShared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.bin_count = 0;
    shared.crossed = false;
  }
  __syncthreads();
  for (std::uint32_t i = threadIdx.x; i < shared.count; i += kBlockThreads) {
    const Candidate key = shared.list[i];
    if (key < range.lower || key > range.upper) continue;
    shared.found[atomic_add_shared(&shared.bin_count, 1u)] = key;
  }
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
    const Totals through{range.before.count + own + 1, range.before.mass + masses.before + mass};
    const std::uint64_t reached = measured(measure, through);
    if (reached >= target && reached - (measure == Measure::kCount ? 1 : mass) < target) {
      shared.crossed = true;
      shared.crossing = {key, through};
    }
  }
  __syncthreads();
  if (threadIdx.x == 0 && !shared.crossed) {
    shared.crossing = {kLastCandidate,
                       {range.before.count + count, range.before.mass + masses.total}};
  }
  __syncthreads();
}

// The crossing in the window that was walked for; a bin that is too long for a list becomes the
// window itself. shared.crossed: whether it is there; where it is not, shared.crossing has the sums
// through the window. A barrier follows.
GR_DEVICE void cross_window(Measure measure, std::uint64_t target, CandidateShared& shared) {
  Window range = shared.window;
  bool few = shared.listed && shared.count <= kFew;
  GR_NO_UNROLL
  for (bool whole = true; !few;) {
    if (!whole || !shared.binned) {
      bin_list(range.lower, range.upper, shared);
      if (threadIdx.x == 0) shared.binned = whole;
    }
    const Totals all = find_bin(range.before, measure, target, shared);
    if (!shared.crossed) {
      if (threadIdx.x == 0) shared.crossing = {kLastCandidate, all};
      __syncthreads();
      return;
    }
    range.before = shared.crossing.through;
    const std::uint32_t shift = bin_shift(range.lower, range.upper);
    range.lower += shared.crossing.key << shift;
    const Candidate last = range.lower + ((Candidate{1} << shift) - 1);
    range.upper = last < range.lower || last > range.upper ? range.upper : last;
    whole = !shared.listed;
    if (whole) walk_window(range, {false, true}, shared);
    few = shared.listed && (whole ? shared.count : shared.bin_count) <= kFew;
  }
  cross_few(range, measure, target, shared);
}

// Leaves in shared.crossing the first candidate with which the count, or the mass, reaches the
// target (at least 1), and both sums up to it. Where all candidates up to the limit do not reach
// it: kLastCandidate, and their sums. By the whole block; a barrier follows.
GR_DEVICE void find_crossing(Measure measure, std::uint64_t target, const Limit& limit,
                             CandidateShared& shared) {
  // Standard deviations of the windows to try; a row whose sample says so little is searched whole.
  constexpr double kDeviations = 3.0;
  constexpr double kWider = 12.0;
  Window range{shared.source.first(), limit.key, {0, 0}};
  const bool whole = shared.source.row.size <= static_cast<std::int64_t>(kListCapacity);
  GR_NO_UNROLL
  for (int attempt = shared.listed ? 0 : 1;; ++attempt) {
    if (attempt > 0) {
      Window window = range;
      if (!whole && attempt <= 2) {
        window = choose_window(measure, target, limit, attempt == 1 ? kDeviations : kWider, range,
                               shared);
      }
      walk_window(window, {window.lower != shared.source.first(), true}, shared);
    }
    const Window window = shared.window;
    cross_window(measure, target, shared);
    if (shared.crossed) return;
    if (measured(measure, window.before) >= target) {
      range.upper = window.lower - 1;
    } else if (window.upper < range.upper) {
      range.lower = window.upper + 1;
    } else {
      return;
    }
  }
}

}  // namespace glimprouter::device
