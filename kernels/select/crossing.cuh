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

// The range of keys that the bin of the crossing stands for, and the sums before it.
GR_DEVICE Window bin_of_crossing(const Window& range, const Crossing& crossing) {
  const std::uint32_t shift = bin_shift(range.lower, range.upper);
  const Candidate lower = range.lower + (crossing.key << shift);
  const Candidate last = lower + ((Candidate{1} << shift) - 1);
  return {lower, last < lower || last > range.upper ? range.upper : last, crossing.through};
}

// The crossing in a part of the window: the window, or a bin of its list. shared.crossed: whether
// it is there; where it is not, shared.crossing has the sums through the part. Gives the part to go
// on with, or the same one at the end. A barrier follows.
GR_DEVICE Window split(const Window& part, Measure measure, std::uint64_t target,
                       CandidateShared& shared) {
  const bool whole = part.lower == shared.window.lower && part.upper == shared.window.upper;
  if (shared.listed && (whole ? shared.count : shared.bin_count) <= kFew) {
    cross_few(part, measure, target, shared);
    return part;
  }
  if (!whole || !shared.binned) {
    bin_list(part.lower, part.upper, shared);
    if (threadIdx.x == 0) shared.binned = whole;
  }
  const Totals all = find_bin(part.before, measure, target, shared);
  if (shared.crossed) return bin_of_crossing(part, shared.crossing);
  if (threadIdx.x == 0) shared.crossing = {kLastCandidate, all};
  __syncthreads();
  return part;
}

// The window to walk for: what an earlier walk prepared for this search, or by a sample. sums: what
// lies before it must be summed.
GR_DEVICE Window next_window(std::uint32_t attempt, bool& sums, CandidateShared& shared) {
  Window window = shared.next;
  if (window.upper > shared.upper) window.upper = shared.upper;
  sums = window.lower < shared.lower || window.lower > window.upper || shared.target.next > 0;
  if (sums) {
    window = choose_window(attempt, shared);
    sums = window.lower != shared.source.first();
  } else {
    __syncthreads();
    if (threadIdx.x == 0) shared.next.lower = 0;
    __syncthreads();
  }
  return window;
}

// The crossing does not lie in the window, whose sums are known: it lies on one side of it. False
// where nothing is left there. A barrier follows.
GR_DEVICE bool leave_window(CandidateShared& shared) {
  const Window& window = shared.window;
  const bool before = measured(shared.target.measure, window.before) >= shared.target.value;
  const bool left = before || window.upper < shared.upper;
  __syncthreads();
  if (threadIdx.x == 0 && before) shared.upper = window.lower - 1;
  if (threadIdx.x == 0 && !before) shared.lower = window.upper + 1;
  __syncthreads();
  return left;
}

// Leaves in shared.crossing the first candidate with which the count, or the mass, reaches the
// target (at least 1), and both sums up to it. Where all candidates up to shared.limit do not reach
// it: kLastCandidate, and their sums. By the whole block; a barrier follows.
GR_DEVICE void find_crossing(const Target& target, CandidateShared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.target = target;
    shared.lower = shared.source.first();
    shared.upper = shared.limit.key;
  }
  __syncthreads();
  Window part = shared.window;
  bool choose = !shared.listed;
  bool walk = choose;
  GR_NO_UNROLL
  for (std::uint32_t attempt = 0;;) {
    if (walk) {
      bool sums = false;
      if (choose) part = next_window(attempt++, sums, shared);
      walk_window(part, {sums, true}, shared);
      part = shared.window;
    }
    const Window next = split(part, shared.target.measure, shared.target.value, shared);
    if (!shared.crossed) {
      if (!leave_window(shared)) return;
      choose = walk = true;
      continue;
    }
    if (next.lower == part.lower && next.upper == part.upper) return;
    part = next;
    choose = false;
    walk = !shared.listed;
  }
}

}  // namespace glimprouter::device
