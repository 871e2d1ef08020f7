// The fused row operation in one launch: every warp sums whole tiles of a row; the last block that
// is done with a row merges its tiles, selects the token and finishes the job. No block waits for
// another. A Job says what the rows are, what is asked, and what becomes of a result:
//
//   const DeviceRowWorkspace& workspace()
//   RowView row(index)
//   bool wanted(index)                 false: the row is left alone
//   void refuse(index)                 by one thread, for a row that is not wanted
//   TileRequest tile_request(index)    what the tiles must give
//   Shared                             of the block that finishes a row, trivial
//   RowRequest request(index); float* logprobs(index)
//   void prepare(index, Shared&)       by a warp, while the tiles are merged
//   void finish(index, const RowResult&, Shared&)    by all threads; the result is that of thread 0
#pragma once

#include <cstdint>
#include <new>

#include "device.cuh"
#include "glimprouter/row_op.hpp"
#include "glimprouter/row_statistics.hpp"
#include "row_merge.cuh"
#include "row_select.cuh"
#include "row_tile.cuh"

namespace glimprouter::device {

// Leaves 128 registers a thread.
inline constexpr unsigned kBlocksPerProcessor = 2;

// What the warps of a finishing block do side by side.
enum FinishRole : std::uint32_t { kMergeWarp = 0, kTopTwoWarp = 1, kPrepareWarp = 2, kRequestWarp };

template <typename JobShared>
struct RowShared {
  alignas(RowRequest) unsigned char request[sizeof(RowRequest)];
  JobShared job;
  RowSums sums;
  double log_sum;
  TopTwo top;
  SelectShared select;
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
    TilePieces<kType> pieces;
    if (tile < num_tiles) pieces = load_tile<kType>(row, vectors, tile);
    if (first) {
      if (!job.wanted(index)) return false;
      request = job.tile_request(index);
    }
    if (tile >= num_tiles) return true;
    sum_tile(pieces, request,
             job.workspace().tiles + static_cast<std::int64_t>(index) * num_tiles + tile);
    tile += gridDim.x * kWarps;
  }
}

template <typename Job>
GR_DEVICE bool sum_tiles_of(const Job& job, std::uint32_t index, const RowView& row) {
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

// Sums, the two largest elements, what the job needs of its sequence and what is asked: each by a
// warp of its own. Returns the row's status.
template <typename Job>
GR_DEVICE RowStatus merge_row(const Job& job, std::uint32_t index, const RowView& row,
                              const TileStatistics* tiles,
                              RowShared<typename Job::Shared>& shared) {
  const std::int64_t num_tiles = tiles_of(row.size);
  const std::uint32_t role = warp_of_thread();
  if (role == kPrepareWarp) job.prepare(index, shared.job);
  if (role == kRequestWarp && lane_of_thread() == 0) {
    new (shared.request) RowRequest(job.request(index));
  }
  const RowExtremes extremes = find_extremes(tiles, num_tiles);
  const RowStatus status = row_status(row, extremes, shared.select.candidates.block);
  if (status == RowStatus::kOk && role == kMergeWarp) {
    const RowSums sums = merge_tiles(tiles, num_tiles, extremes.maximum, job.temperature(index));
    if (lane_of_thread() == 0) {
      shared.sums = sums;
      shared.log_sum = log_positive(sums.sum);
    }
  }
  if (status == RowStatus::kOk && role == kTopTwoWarp) {
    const TopTwo top = find_top_two(row, extremes);
    if (lane_of_thread() == 0) shared.top = top;
  }
  __syncthreads();
  return status;
}

// The result of a row whose tiles are summed. Valid in thread 0; logprobs are written by all.
template <typename Job>
GR_DEVICE RowResult finish_row(const Job& job, std::uint32_t index, const RowView& row,
                               RowShared<typename Job::Shared>& shared) {
  const TileStatistics* const tiles = job.workspace().tiles + index * tiles_of(row.size);
  const RowStatus status = merge_row(job, index, row, tiles, shared);
  const RowRequest& request = *std::launder(reinterpret_cast<const RowRequest*>(shared.request));
  float* const logprobs = job.logprobs(index);
  if (status != RowStatus::kOk) {
    fill_logprobs(request, kNotANumber, logprobs);
    return invalid_result(status);
  }
  const SummedRow summed{row, tiles, shared.sums};
  std::int32_t token = shared.top.argmax;
  if (request.sampling.temperature > 0.0f) {
    token = sample_token(summed, request.sampling, request.random, shared.select);
  }
  double entropy = 0;
  if (request.entropy_top_k > 0) {
    entropy = entropy_of_top_k(summed, request.entropy_top_k, shared.select.candidates);
  }
  const RowScale scale{shared.sums.maximum, shared.log_sum};
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < request.num_logprob_ids; i += kLanes) {
    logprobs[i] = scale.logprob(element_of(row, request.logprob_ids[i]));
  }
  RowResult result = invalid_result(RowStatus::kOk);
  if (threadIdx.x != 0) return result;
  result = statistics_of(shared.sums, scale, shared.top.argmax, shared.top.second,
                         request.want_varentropy);
  if (request.entropy_top_k > 0) result.entropy = static_cast<float>(entropy);
  result.token = token;
  result.logprob = scale.logprob(element_of(row, token));
  return result;
}

// grid: (blocks a row, rows). block: kBlockThreads.
template <typename Job>
GR_KERNEL(kBlockThreads, kBlocksPerProcessor)
void row_kernel(const Job job) {
  GR_SHARED(RowShared<typename Job::Shared>, shared);
  wait_for_dependencies();
  const std::uint32_t index = blockIdx.y;
  const RowView row = job.row(index);
  if (!sum_tiles_of(job, index, row)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) job.refuse(index);
    return;
  }
  launch_dependents();
  if (!is_last_block(&job.workspace().tickets[index], shared.last)) return;
  const RowResult result = finish_row(job, index, row, shared);
  job.finish(index, result, shared.job);
}

}  // namespace glimprouter::device
