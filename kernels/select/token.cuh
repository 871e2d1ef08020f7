// The token and the top-k entropy of a row, by the block that finishes it: the selection that
// csrc/ops/selection.hpp specifies. Masses are integers, so that it may be done in parallel.
#pragma once

#include <cstdint>

#include "arithmetic/fixed_mass.hpp"
#include "arithmetic/random.hpp"
#include "arithmetic/row_statistics.hpp"
#include "glimprouter/row_op.hpp"
#include "kernels/base/device.cuh"
#include "kernels/row/merge.cuh"
#include "kernels/select/candidates.cuh"
#include "kernels/select/crossing.cuh"
#include "kernels/select/sample.cuh"

namespace glimprouter::device {

struct SelectShared {
  CandidateShared candidates;
  double uniform;
  std::int64_t tile;
  double fraction;
  std::int32_t token;
};

// What the finishing block knows about its row.
struct SummedRow {
  RowView row;
  const TileStatistics* tiles;
  const RowSums& sums;  // in shared memory
};

GR_DEVICE void set_source(const SummedRow& summed, float temperature, const Limit& limit,
                          CandidateShared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.limit = limit;
    shared.source = {summed.row, summed.tiles, {summed.sums.maximum, 1.0f / temperature}};
    shared.listed = false;
    shared.next.lower = 0;
    shared.walks = shared.summing_walks = 0;
  }
  __syncthreads();
}

// A barrier follows.
GR_DEVICE void set_limit(const Limit& limit, CandidateShared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) shared.limit = limit;
  __syncthreads();
}

// Limits the candidates to those before the first whose weight is less than min_p. Not to all that
// weigh enough: the exponential of neighbouring numbers may fall where they rise.
GR_DEVICE void limit_weight(float min_p, CandidateShared& shared) {
  Candidate first_below = kLastCandidate;
  Mass mass = 0;
  GR_NO_UNROLL
  for (int pass = 0; pass < 2; ++pass) {
    for_candidates(shared.limit.key, shared, [&](Candidate key) {
      const float weight = shared.source.scale.weight(candidate_value(key));
      if (pass == 1) {
        mass += key < first_below ? mass_of(weight) : 0;
      } else if (weight < min_p && key < first_below) {
        first_below = key;
      }
    });
    if (pass == 0) first_below = block_min(first_below, shared.block);
  }
  const Candidate last = shared.limit.key;
  set_limit({first_below <= last ? first_below - 1 : last, block_prefix(mass, shared.block).total},
            shared);
}

// Somewhat below the smallest element that min-p can keep.
GR_DEVICE float lowest_of_min_p(float maximum, const SamplingParameters& sampling) {
  const double depth = static_cast<double>(sampling.temperature) *
                       (log_positive(static_cast<double>(sampling.min_p)) - 1e-3);
  const double lowest = static_cast<double>(maximum) + depth;
  return lowest > static_cast<double>(kLowestFinite) ? static_cast<float>(lowest) : kLowestFinite;
}

// What top-k, top-p and min-p leave, one after the other, and the draw from it.
enum Stage : int { kCountStage, kMassStage, kDrawStage };

// uniform: in shared memory.
GR_DEVICE std::int32_t draw_filtered(const SummedRow& summed, const SamplingParameters& sampling,
                                     const double& uniform, CandidateShared& shared) {
  const bool limits_count = restricts_count(sampling, summed.row.size);
  const bool limits_mass = sampling.top_p < 1.0f;
  const bool counts_or_sums = limits_count || limits_mass;
  const float lowest =
      counts_or_sums ? kLowestFinite : lowest_of_min_p(summed.sums.maximum, sampling);
  set_source(summed, sampling.temperature, {last_above(lowest), mass_of_sum(summed.sums.sampling)},
             shared);
  if (!counts_or_sums) {
    walk_window({shared.source.first(), shared.limit.key, {0, 0}}, {false, false}, shared);
  }
  GR_NO_UNROLL
  for (int stage = limits_count ? kCountStage : kMassStage;; ++stage) {
    Target target{Measure::kCount, static_cast<std::uint64_t>(sampling.top_k), 0};
    if (stage == kMassStage) {
      if (!limits_mass) continue;
      target = {Measure::kMass, mass_target(sampling.top_p, shared.limit.mass), 0};
      // The nucleus will have that mass but for a part of an element.
      if (!(sampling.min_p > 0.0f)) target.next = drawn_unit(uniform, target.value) + 1;
    } else if (stage == kDrawStage) {
      if (sampling.min_p > 0.0f) limit_weight(sampling.min_p, shared);
      target = {Measure::kMass, drawn_unit(uniform, shared.limit.mass) + 1, 0};
    }
    find_crossing(target, shared);
    const Crossing crossing = shared.crossing;
    if (stage == kDrawStage) return candidate_id(crossing.key);
    const Candidate last = shared.limit.key;
    set_limit({crossing.key < last ? crossing.key : last, crossing.through.mass}, shared);
  }
}

// The tile at which the draw lies, and at what fraction of its mass; by one warp, a few
// neighbouring tiles a lane.
GR_DEVICE void choose_tile(const SummedRow& summed, float temperature, double uniform,
                           SelectShared& shared) {
  const auto mass_of_tile = [&](std::int64_t tile) {
    return mass_of_sum(terms_of(summed.tiles[tile], summed.sums.maximum, temperature).sampling);
  };
  const std::int64_t num_tiles = summed.sums.num_tiles;
  const std::int64_t each = (num_tiles + kWarpSize - 1) / kWarpSize;
  const std::int64_t begin = each * lane_of_thread();
  const std::int64_t end = begin + each < num_tiles ? begin + each : num_tiles;
  Mass own = 0;
  for (std::int64_t tile = begin; tile < end; ++tile) own += mass_of_tile(tile);
  const Mass through = warp_prefix(own);
  const Mass unit = drawn_unit(uniform, __shfl_sync(kFullMask, through, kWarpSize - 1));
  if (through <= unit || through - own > unit) return;
  Mass before = through - own;
  for (std::int64_t tile = begin; tile < end; ++tile) {
    const Mass mass = mass_of_tile(tile);
    if (before + mass > unit) {
      shared.tile = tile;
      shared.fraction = static_cast<double>(unit - before) / static_cast<double>(mass);
      return;
    }
    before += mass;
  }
}

GR_DEVICE std::int32_t draw_unfiltered(const SummedRow& summed, float temperature, double uniform,
                                       SelectShared& shared) {
  if (warp_of_thread() == 0) choose_tile(summed, temperature, uniform, shared);
  __syncthreads();
  const std::int64_t tile = shared.tile;
  const MassScale scale{summed.tiles[tile].maximum, 1.0f / temperature};
  // Eight neighbouring elements a thread, in the order of ids.
  constexpr int kOwn = kTileSize / static_cast<int>(kBlockThreads);
  const auto begin =
      static_cast<std::int32_t>(tile) * kTileSize + static_cast<std::int32_t>(threadIdx.x) * kOwn;
  Mass masses[kOwn];
  Mass own = 0;
  float x[kOwn];
  read_strided(summed.row, begin, 1, x);
  GR_UNROLL
  for (int i = 0; i < kOwn; ++i) {
    masses[i] = scale.mass(x[i]);
    own += masses[i];
  }
  const PrefixSum prefix = block_prefix(own, shared.candidates.block);
  const Mass unit = drawn_unit(shared.fraction, prefix.total);
  if (prefix.before <= unit && unit < prefix.before + own) {
    Mass through = prefix.before;
    int index = 0;
    GR_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      through += masses[i];
      index += through <= unit ? 1 : 0;
    }
    shared.token = begin + index;
  }
  __syncthreads();
  return shared.token;
}

// The token for sampling.temperature > 0. Every thread gets it.
GR_DEVICE std::int32_t sample_token(const SummedRow& summed, const SamplingParameters& sampling,
                                    const RandomKey& random, SelectShared& shared) {
  const double uniform = uniform_double(random);
  if (!restricts_count(sampling, summed.row.size) && !(sampling.top_p < 1.0f) &&
      !(sampling.min_p > 0.0f)) {
    return draw_unfiltered(summed, sampling.temperature, uniform, shared);
  }
  if (threadIdx.x == 0) shared.uniform = uniform;
  return draw_filtered(summed, sampling, shared.uniform, shared.candidates);
}

// Nats, over the k largest elements, renormalised.
GR_DEVICE double entropy_of_top_k(const SummedRow& summed, std::int64_t k,
                                  CandidateShared& shared) {
  const auto count = static_cast<std::uint64_t>(k < summed.row.size ? k : summed.row.size);
  const Candidate all = last_above(kLowestFinite);
  set_source(summed, 1.0f, {all, 0}, shared);
  find_crossing({Measure::kCount, count, 0}, shared);
  const Candidate last = shared.crossing.key;
  TopMass top;
  for_candidates(last < all ? last : all, shared, [&](Candidate key) {
    const float d = candidate_value(key) - shared.source.scale.maximum;
    top.add(d, exp_nonpositive(d));
  });
  top.sum = block_prefix(top.sum, shared.block).total;
  top.weighted = block_prefix(top.weighted, shared.block).total;
  return top.entropy();
}

}  // namespace glimprouter::device
