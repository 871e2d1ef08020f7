// The fused row operation in one launch: every block sums whole tiles of a row; the last one that
// is done with a row merges its tiles, selects the token and finishes the job. No block waits for
// another. A Job says what the rows are, what is asked, and what becomes of a result:
//
//   const DeviceRowWorkspace& workspace()
//   bool wanted(index)                 false: the row is left alone
//   void refuse(index)                 by one thread, for a row that is not wanted
//   RowView row(index); RowRequest request(index); float* logprobs(index)
//   void finish(index, const RowResult&)             by one thread
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

// Leaves 128 registers a thread: with three blocks the compiler spills on some architectures.
inline constexpr unsigned kBlocksPerProcessor = 2;

GR_DEVICE TileRequest tile_request(const RowRequest& request, std::int64_t size) {
  const SamplingParameters& sampling = request.sampling;
  const bool tempered = is_tempered(sampling);
  return {tempered && !restricts_count(sampling, size), request.want_varentropy,
          tempered ? 1.0f / sampling.temperature : 1.0f};
}

GR_DEVICE float element_of(const RowView& row, std::int32_t index) {
  return read_element(static_cast<const std::byte*>(row.data) + element_size(row.dtype) * index,
                      row.dtype);
}

// The result of a row whose tiles are summed. Valid in thread 0; logprobs are written by all.
GR_DEVICE RowResult finish_row(const RowView& row, const RowRequest& request,
                               const TileStatistics* tiles, RowShared& shared, float* logprobs) {
  const RowExtremes extremes = find_extremes(row, tiles, shared.tile);
  if (extremes.status != RowStatus::kOk) {
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < request.num_logprob_ids;
         i += kLanes) {
      logprobs[i] = kNotANumber;
    }
    return invalid_result(extremes.status);
  }
  merge_tiles(tiles, tiles_of(row.size), extremes.maximum, request.sampling.temperature,
              shared.merge, shared.sums);
  const TopTwo top = find_top_two(row, extremes, shared.tile);
  if (threadIdx.x == 0) shared.top = top;
  const SummedRow summed{row, tiles, shared.sums};
  std::int32_t token = top.argmax;
  if (request.sampling.temperature > 0.0f) {
    token = sample_token(summed, request.sampling, request.random, shared);
  }
  double entropy = 0;
  if (request.entropy_top_k > 0) entropy = entropy_of_top_k(summed, request.entropy_top_k, shared);
  const RowScale scale{shared.sums.maximum, log_positive(shared.sums.sum)};
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
  GR_SHARED(RowShared, shared);
  wait_for_dependencies();
  const std::uint32_t index = blockIdx.y;
  if (!job.wanted(index)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) job.refuse(index);
    return;
  }
  if (threadIdx.x == 0) new (shared.request) RowRequest(job.request(index));
  __syncthreads();
  const RowRequest& request = *std::launder(reinterpret_cast<const RowRequest*>(shared.request));
  const RowView row = job.row(index);
  const std::int64_t num_tiles = tiles_of(row.size);
  TileStatistics* const tiles = job.workspace().tiles + index * num_tiles;
  const TileRequest asked = tile_request(request, row.size);
  sum_tiles(row, blockIdx.x, gridDim.x, asked, shared.tile, tiles);
  launch_dependents();
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.more = ticket_increment(&job.workspace().tickets[index], gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!shared.more) return;
  __threadfence();
  const RowResult result = finish_row(row, request, tiles, shared, job.logprobs(index));
  if (threadIdx.x == 0) job.finish(index, result);
}

}  // namespace glimprouter::device
