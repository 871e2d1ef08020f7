// The fused row operation in one launch: warps, or blocks, sum whole tiles; the last block that
// is done with a row merges its tiles, selects the token and finishes the job. No block waits for
// another. A Job says what the rows are, what is asked, and what becomes of a result:
//
//   kBlocksPerProcessor                that run at the same time
//   const DeviceRowWorkspace& workspace()
//   RowView row(index)
//   bool wanted(index)                 false: the row is left alone
//   void refuse(index)                 by one thread, for a row that is not wanted
//   TileRequest tile_request(index)    what the tiles must give
//   Shared                             of the block that finishes a row, trivial
//   RowRequest request(index); float* logprobs(index)
//   void prepare(index, Shared&)       by all threads; a barrier follows
//   void prefetch(token, Shared&)      by one thread: what finish() will read for the token
//   void finish(index, const RowResult&, Shared&)    by all threads; the result is that of thread 0
#pragma once

#include <cstdint>
#include <new>

#include "arithmetic/row_statistics.hpp"
#include "glimprouter/row_op.hpp"
#include "kernels/base/device.cuh"
#include "kernels/row/lanes.cuh"
#include "kernels/row/merge.cuh"
#include "kernels/row/tile.cuh"
#include "kernels/select/token.cuh"

namespace glimprouter::device {

// Statistics of so many tiles lie in shared memory while a row is finished; of more they are read
// where they are.
inline constexpr std::int64_t kStagedTiles = 160;

template <typename JobShared>
struct RowShared {
  alignas(RowRequest) unsigned char request[sizeof(RowRequest)];
  JobShared job;
  RowSums sums;
  RowQuotients quotients;
  TopTwoShared warp_tops;
  TopTwo top;  // for thread 0, which would hold it in registers while the token is selected
  TileStatistics tiles[kStagedTiles];
  union {
    LanesShared lanes;    // while the tiles are summed
    SelectShared select;  // once they are
  };
  bool last;
};

GR_DEVICE TileRequest tile_request_of(const SamplingParameters& sampling, bool squared,
                                      std::int64_t size) {
  const bool tempered = is_tempered(sampling);
  return {tempered && !restricts_count(sampling, size), squared,
          tempered ? 1.0f / sampling.temperature : 1.0f};
}

GR_DEVICE void fill_logprobs(const RowRequest& request, float value, float* logprobs) {
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < request.num_logprob_ids; i += kLanes) {
    logprobs[i] = value;
  }
}

// The tiles blockIdx.x, ... of a row, a warp each. False, with nothing written, for a row that is
// not wanted. The first tile is on its way while what is asked of it is looked up.
template <DataType kType, typename Job>
GR_DEVICE bool sum_tiles(const Job& job, std::uint32_t index, const RowView& row) {
  const RowVectors vectors(row);
  const auto num_tiles = static_cast<std::uint32_t>(tiles_of(row.size));
  TileRequest request{};
  std::uint32_t tile = blockIdx.x + warp_of_thread() * gridDim.x;
  for (bool first = true;; first = false) {
    const TilePieces<kType> pieces(row, vectors, tile);
    const float maximum = tile < num_tiles ? tile_maximum(pieces) : 0.0f;
    if (first) {
      if (!job.wanted(index)) return false;
      request = job.tile_request(index);
    }
    if (tile >= num_tiles) return true;
    sum_tile(pieces, maximum, request,
             job.workspace().tiles + static_cast<std::int64_t>(index) * num_tiles + tile);
    tile += gridDim.x * kWarps;
  }
}

// The same for the tile blockIdx.x by the whole block.
template <typename Job>
GR_DEVICE bool sum_own_tile(const Job& job, std::uint32_t index, const RowView& row,
                            LanesShared& shared) {
  const LaneElements elements(row, blockIdx.x);
  if (!job.wanted(index)) return false;
  sum_lanes(elements, job.tile_request(index), shared,
            job.workspace().tiles + static_cast<std::int64_t>(index) * gridDim.x + blockIdx.x);
  return true;
}

template <typename Job>
GR_DEVICE bool sum_tiles_of(const Job& job, std::uint32_t index, const RowView& row,
                            LanesShared& shared) {
  if (gridDim.x == static_cast<std::uint32_t>(tiles_of(row.size))) {
    return sum_own_tile(job, index, row, shared);
  }
  switch (row.dtype) {
    case DataType::kFloat32:
      return sum_tiles<DataType::kFloat32>(job, index, row);
    case DataType::kBFloat16:
      return sum_tiles<DataType::kBFloat16>(job, index, row);
    case DataType::kFloat16:
      return sum_tiles<DataType::kFloat16>(job, index, row);
  }
  return false;
}

// Whether the caller's block is the last one that is done with its row; then it sees what the
// others wrote.
GR_DEVICE bool is_last_block(std::uint32_t* ticket, bool& shared_last) {
  __syncthreads();
  if (gridDim.x == 1) return true;
  if (threadIdx.x == 0) {
    shared_last = ticket_increment(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!shared_last) return false;
  __threadfence();
  return true;
}

// Brings what the finishing block reads more than once into shared memory. A barrier follows.
template <typename Job>
GR_DEVICE const TileStatistics* stage_row(const Job& job, std::uint32_t index,
                                          std::int64_t num_tiles,
                                          RowShared<typename Job::Shared>& shared) {
  const TileStatistics* const tiles = job.workspace().tiles + index * num_tiles;
  job.prepare(index, shared.job);
  if (threadIdx.x == kBlockThreads - 1) new (shared.request) RowRequest(job.request(index));
  if (num_tiles > kStagedTiles) return tiles;
  static_assert(sizeof(TileStatistics) == 5 * sizeof(float));
  const auto* const source = reinterpret_cast<const float*>(tiles);
  auto* const target = reinterpret_cast<float*>(shared.tiles);
  for (std::uint32_t i = threadIdx.x; i < 5 * num_tiles; i += kBlockThreads) target[i] = source[i];
  return shared.tiles;
}

// Sums by one warp, the two largest elements by the others, side by side. Returns the row's status.
template <typename JobShared>
GR_DEVICE RowStatus merge_row(const RowView& row, const TileStatistics* tiles, float temperature,
                              RowShared<JobShared>& shared) {
  const std::int64_t num_tiles = tiles_of(row.size);
  const RowExtremes extremes = find_extremes(tiles, num_tiles);
  const RowStatus status = row_status(row, extremes, shared.select.candidates.block);
  if (status != RowStatus::kOk) return status;
  if (warp_of_thread() == 0) {
    const RowSums sums = merge_tiles(tiles, num_tiles, extremes.maximum, temperature);
    const RowQuotients quotients = quotients_by_warp(sums);
    if (lane_of_thread() == 0) {
      shared.sums = sums;
      shared.quotients = quotients;
    }
  } else {
    find_top_two(row, extremes, shared.warp_tops);
  }
  __syncthreads();
  return status;
}

// The result of a row whose tiles are summed. Valid in thread 0; logprobs are written by all.
template <typename Job>
GR_DEVICE RowResult finish_row(const Job& job, std::uint32_t index, const RowView& row,
                               RowShared<typename Job::Shared>& shared) {
  const TileStatistics* const tiles = stage_row(job, index, tiles_of(row.size), shared);
  __syncthreads();
  const RowRequest& request = *std::launder(reinterpret_cast<const RowRequest*>(shared.request));
  const RowStatus status = merge_row(row, tiles, request.sampling.temperature, shared);
  float* const logprobs = job.logprobs(index);
  if (status != RowStatus::kOk) {
    fill_logprobs(request, kNotANumber, logprobs);
    return invalid_result(status);
  }
  const SummedRow summed{row, tiles, shared.sums};
  const TopTwo top = shared.warp_tops.merged(shared.sums.maximum);
  if (threadIdx.x == 0) shared.top = top;
  std::int32_t token = top.argmax;
  float value = top.value;
  if (request.sampling.temperature > 0.0f) {
    token = sample_token(summed, request.sampling, request.random, shared.select);
    value = element_of(row, token);
  }
  if (threadIdx.x == 0) job.prefetch(token, shared.job);
  double entropy = 0;
  if (request.entropy_top_k > 0) {
    entropy = entropy_of_top_k(summed, request.entropy_top_k, shared.select.candidates);
  }
  const RowScale scale{shared.sums.maximum, shared.quotients.log_sum};
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < request.num_logprob_ids; i += kLanes) {
    logprobs[i] = scale.logprob(element_of(row, request.logprob_ids[i]));
  }
  RowResult result = invalid_result(RowStatus::kOk);
  if (threadIdx.x != 0) return result;
  result = statistics_of(shared.sums, shared.quotients, shared.top.argmax, shared.top.second,
                         request.want_varentropy);
  if (request.entropy_top_k > 0) result.entropy = static_cast<float>(entropy);
  result.token = token;
  result.logprob = scale.logprob(value);
  return result;
}

// grid: (blocks a row, rows). block: kBlockThreads.
template <typename Job>
GR_KERNEL(kBlockThreads, Job::kBlocksPerProcessor)
void row_kernel(const Job job) {
  GR_SHARED(RowShared<typename Job::Shared>, shared);
  wait_for_dependencies();
  const std::uint32_t index = blockIdx.y;
  const RowView row = job.row(index);
  if (!sum_tiles_of(job, index, row, shared.lanes)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) job.refuse(index);
    return;
  }
  launch_dependents();
  if (!is_last_block(&job.workspace().tickets[index], shared.last)) return;
  const RowResult result = finish_row(job, index, row, shared);
  job.finish(index, result, shared.job);
}

}  // namespace glimprouter::device
