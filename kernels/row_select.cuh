// The token and the top-k entropy of a row, by the block that finishes it: the selection of
// csrc/selection.cpp with the same sums in the same order.
#pragma once

#include <cstdint>

#include "candidates.cuh"
#include "device.cuh"
#include "glimprouter/random.hpp"
#include "glimprouter/row_op.hpp"
#include "glimprouter/row_statistics.hpp"
#include "row_merge.cuh"
#include "row_tile.cuh"

namespace glimprouter::device {

// Pivots from the tile maxima are used from this number of tiles on; a shorter row is read whole.
inline constexpr std::int64_t kMinPivotTiles = 16;
inline constexpr std::int64_t kMaxPivotTiles = kTileSize;
// A nucleus of a peaked row holds some ten tokens: this many tiles have one at least as large.
inline constexpr std::int64_t kNucleusTiles = 48;

// What is asked and what the sums gave lies here rather than in registers, which the selection
// needs.
struct RowShared {
  alignas(RowRequest) unsigned char request[sizeof(RowRequest)];
  TileShared tile;
  MergeShared merge;
  CandidateShared candidates;
  RowSums sums;
  TopTwo top;
  double mass;
  std::int64_t kept;
  std::int32_t token;
  bool more;
};

// What the finishing block knows about its row.
struct SummedRow {
  RowView row;
  const TileStatistics* tiles;
  const RowSums& sums;  // in shared memory
};

// The k-th largest tile maximum: at least k elements of the row are as large.
GR_DEVICE float kth_tile_maximum(const SummedRow& summed, std::int64_t k, RowShared& shared) {
  float* const maxima = shared.candidates.weights;
  const auto num_tiles = static_cast<std::int32_t>(summed.sums.num_tiles);
  __syncthreads();
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < num_tiles; i += kLanes) {
    maxima[i] = summed.tiles[i].maximum;
  }
  __syncthreads();
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < num_tiles; i += kLanes) {
    std::int64_t rank = 1;
    for (std::int32_t j = 0; j < num_tiles; ++j) {
      rank += maxima[j] > maxima[i] || (maxima[j] == maxima[i] && j < i) ? 1 : 0;
    }
    if (rank == k) shared.mass = static_cast<double>(maxima[i]);
  }
  __syncthreads();
  return static_cast<float>(shared.mass);
}

// A guess below which few of the wanted candidates lie. Any value is correct.
GR_DEVICE float first_pivot(const SummedRow& summed, std::int64_t wanted, float min_p,
                            float temperature, RowShared& shared) {
  const std::int64_t num_tiles = summed.sums.num_tiles;
  if (num_tiles < kMinPivotTiles || num_tiles > kMaxPivotTiles) return kLowestFinite;
  if (min_p > 0.0f) {
    const double depth =
        static_cast<double>(temperature) * (log_positive(static_cast<double>(min_p)) - 1e-3);
    const double pivot = static_cast<double>(summed.sums.maximum) + depth;
    return pivot > static_cast<double>(kLowestFinite) ? static_cast<float>(pivot) : kLowestFinite;
  }
  float pivot = kth_tile_maximum(summed, wanted < num_tiles ? wanted : num_tiles, shared);
  // More than one candidate a tile: somewhat deeper than the lowest of the tile maxima.
  if (wanted > num_tiles) pivot -= 0.3f * (summed.sums.maximum - pivot);
  return pivot > kLowestFinite ? pivot : kLowestFinite;
}

// Thread 0 takes the candidates one by one, in descending order, until `take` says false.
template <typename Take>
GR_DEVICE void walk(CandidateStream& stream, RowShared& shared, Take take) {
  stream.restart();
  while (stream.next()) {
    if (threadIdx.x == 0) {
      bool more = true;
      for (std::uint32_t i = 0; i < stream.count() && more; ++i) more = take(stream, i);
      shared.more = more;
    }
    __syncthreads();
    if (!shared.more) break;
  }
  __syncthreads();
}

// The mass that the kept candidates must reach for top-p; infinity where the mass is no limit.
GR_DEVICE double mass_limit(const SummedRow& summed, const SamplingParameters& sampling,
                            CandidateStream& stream, RowShared& shared) {
  if (!(sampling.top_p < 1.0f)) return static_cast<double>(-kMinusInfinity);
  if (!restricts_count(sampling, summed.row.size)) {
    return static_cast<double>(sampling.top_p) * summed.sums.sampling;
  }
  double total = 0;
  std::int64_t count = 0;
  walk(stream, shared, [&](const CandidateStream& chunk, std::uint32_t i) {
    total += static_cast<double>(chunk.weight(i));
    return ++count < sampling.top_k;
  });
  return static_cast<double>(sampling.top_p) * total;  // of thread 0 alone, as its use
}

GR_DEVICE std::int32_t draw_filtered(const SummedRow& summed, const SamplingParameters& sampling,
                                     double uniform, RowShared& shared) {
  const bool limits_count = restricts_count(sampling, summed.row.size);
  const std::int64_t limit = limits_count ? sampling.top_k : summed.row.size;
  const float min_p = limits_count || sampling.top_p < 1.0f ? 0.0f : sampling.min_p;
  const float pivot = first_pivot(summed, limits_count ? limit : kNucleusTiles, min_p,
                                  sampling.temperature, shared);
  CandidateStream stream({summed.row, summed.tiles, pivot}, summed.sums.maximum,
                         1.0f / sampling.temperature, shared.tile, shared.candidates);
  const double target = mass_limit(summed, sampling, stream, shared);
  double mass = 0;
  std::int64_t kept = 0;
  walk(stream, shared, [&](const CandidateStream& chunk, std::uint32_t i) {
    const float weight = chunk.weight(i);
    if (!(weight > 0.0f) || weight < sampling.min_p) return false;
    mass += static_cast<double>(weight);
    ++kept;
    return mass < target && kept < limit;
  });
  double prefix = 0;
  walk(stream, shared, [&](const CandidateStream& chunk, std::uint32_t i) {
    shared.token = candidate_id(chunk.key(i));
    prefix += static_cast<double>(chunk.weight(i));
    return --kept > 0 && !(prefix > uniform * mass);
  });
  return shared.token;
}

struct ChosenTile {
  std::int64_t tile;
  double residual;  // what is left of the draw inside it, in units of its own sum
};

// The tile in which the prefix sum over the tiles exceeds the draw.
GR_DEVICE ChosenTile choose_tile(const SummedRow& summed, float temperature, double target,
                                 RowShared& shared) {
  const float inverse_temperature = 1.0f / temperature;
  double* const masses = shared.merge.terms[0];
  std::int64_t chosen = 0;
  double before = 0;  // prefix at the chosen tile
  double prefix = 0;
  bool found = false;
  for (std::int64_t first = 0; first < summed.sums.num_tiles; first += kMergedTiles) {
    const std::int64_t left = summed.sums.num_tiles - first;
    const auto count = static_cast<std::int32_t>(left < kMergedTiles ? left : kMergedTiles);
    __syncthreads();
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < count; i += kLanes) {
      masses[i] = terms_of(summed.tiles[first + i], summed.sums.maximum, temperature).sampling;
    }
    __syncthreads();
    if (threadIdx.x != 0) continue;
    for (std::int32_t i = 0; i < count && !found; ++i) {
      if (!(masses[i] > 0)) continue;
      chosen = first + i;
      before = prefix;
      found = prefix + masses[i] > target;
      prefix += masses[i];
    }
  }
  if (threadIdx.x == 0) {
    const float d = summed.tiles[chosen].maximum - summed.sums.maximum;
    shared.mass = (target - before) / static_cast<double>(exp_nonpositive(d * inverse_temperature));
    shared.kept = chosen;
  }
  __syncthreads();
  return {shared.kept, shared.mass};
}

// Index of the first weight whose prefix exceeds target, with the weights added in three levels
// (groups of 128, chunks of 8, elements), each in index order; by thread 0.
// chunk_masses: [count / 8], group_masses: [count / 128].
GR_DEVICE std::int32_t index_in_tile(const float* weights, const double* chunk_masses,
                                     const double* group_masses, std::int32_t count,
                                     double target) {
  std::int32_t begin = 0;
  std::int32_t end = count;
  double prefix = 0;
  for (std::int32_t width = 128; width >= 1; width = width == 128 ? 8 : width / 8) {
    for (;; begin += width) {
      if (begin >= end) {
        while (end > 1 && !(weights[end - 1] > 0.0f)) --end;
        return end - 1;
      }
      const double mass = width == 128 ? group_masses[begin / 128]
                          : width == 8 ? chunk_masses[begin / 8]
                                       : static_cast<double>(weights[begin]);
      if (prefix + mass > target) break;
      prefix += mass;
    }
    end = begin + width < end ? begin + width : end;
  }
  return begin;
}

GR_DEVICE std::int32_t draw_unfiltered(const SummedRow& summed, float temperature, double uniform,
                                       RowShared& shared) {
  const ChosenTile chosen =
      choose_tile(summed, temperature, uniform * summed.sums.sampling, shared);
  const float maximum = summed.tiles[chosen.tile].maximum;
  const float inverse_temperature = 1.0f / temperature;
  float* const weights = shared.candidates.weights;
  float x[kLaneElements];
  load_lane(summed.row, chosen.tile, shared.tile, x);
  GR_UNROLL
  for (std::int32_t k = 0; k < kLaneElements; ++k) {
    weights[static_cast<std::int32_t>(threadIdx.x) + k * kLanes] =
        exp_nonpositive((x[k] - maximum) * inverse_temperature);
  }
  __syncthreads();
  double* const chunk_masses = shared.merge.terms[0];  // [256]: two rows of terms
  double* const group_masses = shared.merge.terms[2];  // [16]
  double mass = 0;
  for (std::uint32_t i = 0; i < 8; ++i) {
    mass += static_cast<double>(weights[threadIdx.x * 8 + i]);
  }
  chunk_masses[threadIdx.x] = mass;
  __syncthreads();
  if (threadIdx.x < 16) {
    double group = 0;
    for (std::uint32_t i = 0; i < 16; ++i) group += chunk_masses[threadIdx.x * 16 + i];
    group_masses[threadIdx.x] = group;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    const std::int64_t left = summed.row.size - chosen.tile * kTileSize;
    const auto present = static_cast<std::int32_t>(left < kTileSize ? left : kTileSize);
    const std::int32_t count = (present + kLanes - 1) / kLanes * kLanes;
    shared.token = static_cast<std::int32_t>(chosen.tile * kTileSize) +
                   index_in_tile(weights, chunk_masses, group_masses, count, chosen.residual);
  }
  __syncthreads();
  return shared.token;
}

// The token for sampling.temperature > 0. Every thread gets it.
GR_DEVICE std::int32_t sample_token(const SummedRow& summed, const SamplingParameters& sampling,
                                    const RandomKey& random, RowShared& shared) {
  const double uniform = uniform_double(random);
  if (!restricts_count(sampling, summed.row.size) && !(sampling.top_p < 1.0f) &&
      !(sampling.min_p > 0.0f)) {
    return draw_unfiltered(summed, sampling.temperature, uniform, shared);
  }
  return draw_filtered(summed, sampling, uniform, shared);
}

// Nats, over the k largest elements, renormalised. Valid in thread 0.
GR_DEVICE double entropy_of_top_k(const SummedRow& summed, std::int64_t k, RowShared& shared) {
  const float pivot = first_pivot(summed, k, 0.0f, 1.0f, shared);
  CandidateStream stream({summed.row, summed.tiles, pivot}, summed.sums.maximum, 1.0f, shared.tile,
                         shared.candidates);
  double sum = 0;
  double weighted = 0;
  walk(stream, shared, [&](const CandidateStream& chunk, std::uint32_t i) {
    const float weight = chunk.weight(i);
    if (!(weight > 0.0f)) return false;
    const float d = candidate_value(chunk.key(i)) - summed.sums.maximum;
    sum += static_cast<double>(weight);
    weighted += static_cast<double>(d) * static_cast<double>(weight);
    return --k > 0;
  });
  if (threadIdx.x != 0) return 0;
  return log_positive(sum) - weighted / sum;
}

}  // namespace glimprouter::device
