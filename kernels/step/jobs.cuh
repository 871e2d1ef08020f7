// What the fused kernel is used for: evaluating rows (glimpse, sample), and a whole routed step.
#pragma once

#include <cstdint>
#include <new>

#include "arithmetic/row_statistics.hpp"
#include "device/device_rows.hpp"
#include "kernels/base/device.cuh"
#include "kernels/step/kernel.cuh"
#include "router/sequence_step.hpp"

namespace glimprouter::device {

// Statistics and token of every row.
struct EvaluateJob {
  struct Shared {};
  EvaluateArguments arguments;

  GR_DEVICE const DeviceRowWorkspace& workspace() const { return arguments.workspace; }
  GR_DEVICE bool wanted(std::uint32_t) const { return true; }
  GR_DEVICE void refuse(std::uint32_t) const {}
  GR_DEVICE RowView row(std::uint32_t index) const {
    return arguments.logits.row(index, arguments.logits.width);
  }
  GR_DEVICE const RowRequest& request(std::uint32_t index) const {
    return arguments.requests != nullptr ? arguments.requests[index] : arguments.request;
  }
  GR_DEVICE TileRequest tile_request(std::uint32_t index) const {
    const RowRequest& asked = request(index);
    return tile_request_of(asked.sampling, asked.want_varentropy, arguments.logits.width);
  }
  GR_DEVICE float* logprobs(std::uint32_t index) const {
    return arguments.logprobs +
           static_cast<std::int64_t>(index) * arguments.request.num_logprob_ids;
  }
  GR_DEVICE void prepare(std::uint32_t, Shared&) const {}
  GR_DEVICE void prefetch(std::int32_t, const Shared&) const {}
  GR_DEVICE void finish(std::uint32_t index, const RowResult& result, Shared&) const {
    if (threadIdx.x == 0) arguments.results[index] = result;
  }
};

// StepRouter's calls over rows of logits on the device: steps, verified drafts, drafts.
struct StepJob {
  // A sequence is read and written by one thread, field by field: in shared memory that takes a
  // tenth of the time.
  static constexpr std::uint32_t kWords = sizeof(SequenceCore) / sizeof(std::uint64_t);
  static_assert(sizeof(SequenceCore) % sizeof(std::uint64_t) == 0);
  struct Shared {
    alignas(SequenceCore) std::uint64_t words[kWords];
    RowResult result;
    bool last;
  };
  StepArguments arguments;

  GR_DEVICE const DeviceRowWorkspace& workspace() const { return arguments.workspace; }
  GR_DEVICE std::int32_t sequence_of(std::uint32_t index) const {
    if (arguments.drafted != nullptr) return arguments.drafted[index].sequence;
    return arguments.row_numbers != nullptr ? arguments.row_numbers[index]
                                            : arguments.rows_by_value[index];
  }
  // Row numbers in device memory cannot be checked before the launch.
  GR_DEVICE bool wanted(std::uint32_t index) const {
    const std::int32_t number = sequence_of(index);
    if (number < 0 || number >= arguments.num_sequences) return false;
    // Side by side, not one after the other.
    const SequenceCore& sequence = arguments.sequences[number];
    const bool open = arguments.open[number] != 0;
    const bool waits = waits_for(sequence.state, sequence.options.limits, arguments.writer);
    return open & waits;
  }
  GR_DEVICE RowView row(std::uint32_t index) const {
    return arguments.logits.row(index, arguments.logits.width);
  }
  GR_DEVICE TileRequest tile_request(std::uint32_t index) const {
    return tile_request_of(arguments.sequences[sequence_of(index)].options.sampling,
                           arguments.outputs.varentropy != nullptr, arguments.logits.width);
  }
  GR_DEVICE RowRequest request(std::uint32_t index) const {
    const std::int32_t ahead = arguments.drafted != nullptr ? arguments.drafted[index].ahead : 0;
    RowRequest request =
        request_of(arguments.sequences[sequence_of(index)], arguments.writer, ahead);
    request.want_varentropy = arguments.outputs.varentropy != nullptr;
    request.logprob_ids = arguments.outputs.logprob_ids;
    request.num_logprob_ids = arguments.outputs.num_logprob_ids;
    return request;
  }
  GR_DEVICE float* logprobs(std::uint32_t index) const {
    return arguments.outputs.logprobs +
           static_cast<std::int64_t>(index) * arguments.outputs.num_logprob_ids;
  }

  GR_DEVICE void refuse(std::uint32_t index) const {
    write_untouched(arguments.outputs, index, RowStatus::kNotWaiting, Phase::kDone, 0,
                    arguments.outputs.num_logprob_ids);
  }

  GR_DEVICE std::uint64_t* words_of(std::uint32_t index) const {
    return reinterpret_cast<std::uint64_t*>(arguments.sequences + sequence_of(index));
  }
  GR_DEVICE void prepare(std::uint32_t index, Shared& shared) const {
    const std::uint64_t* const words = words_of(index);
    static_assert(kWords <= kBlockThreads);
    if (threadIdx.x < kWords) shared.words[threadIdx.x] = words[threadIdx.x];
  }
  GR_DEVICE static SequenceCore& core_in(const Shared& shared) {
    return *std::launder(reinterpret_cast<SequenceCore*>(const_cast<std::uint64_t*>(shared.words)));
  }
  GR_DEVICE void prefetch(std::int32_t token, const Shared& shared) const {
    const std::int64_t place = static_cast<std::int64_t>(token) * arguments.boundary.num_states +
                               core_in(shared).state.automaton;
    prefetch_global(arguments.boundary.effects + place);
    prefetch_global(arguments.boundary.texts + token);
  }
  GR_DEVICE void finish(std::uint32_t index, const RowResult& result, Shared& shared) const {
    // Log-probabilities come from all threads, and are taken back where a row is not reached.
    if (arguments.kind != RowsOf::kStep) __syncthreads();
    if (threadIdx.x == 0) {
      shared.last = finish_alone(index, result, shared);
    }
    __syncthreads();
    if (!shared.last) return;
    std::uint64_t* const words = words_of(index);
    if (threadIdx.x < kWords) words[threadIdx.x] = shared.words[threadIdx.x];
  }

  // Whether the sequence has changed. Of verified rows the last one to be finished takes them all,
  // in order: nobody has written the sequence since its block has read it.
  GR_DEVICE bool finish_alone(std::uint32_t index, const RowResult& result, Shared& shared) const {
    DraftedRow row{0, 0, 0, 0};
    if (arguments.kind != RowsOf::kStep) row = arguments.drafted[index];
    if (arguments.kind == RowsOf::kDraft) {
      draft(index, core_in(shared), result, row);
      return false;
    }
    const std::uint32_t first = index - static_cast<std::uint32_t>(row.ahead);
    const RowResult* results = &shared.result;
    if (row.count == 0) {
      shared.result = result;
    } else {
      arguments.results[index] = result;
      const auto last = static_cast<std::uint32_t>(row.count);
      if (ticket_increment(arguments.workspace.tickets + gridDim.y + first, last) != last) {
        return false;
      }
      __threadfence();
      results = arguments.results + first;
    }
    take(first, core_in(shared), results, row);
    return true;
  }

  GR_DEVICE void take(std::uint32_t first, SequenceCore& sequence, const RowResult* results,
                      const DraftedRow& row) const {
    const std::int32_t logged = sequence.state.think_tokens + sequence.state.answer_tokens;
    TokenRecord* record = arguments.log + sequence_of(first) * arguments.log_capacity + logged;
    take_rows(sequence, arguments.boundary, arguments.model, results, arguments.drafts + row.begin,
              row.count, arguments.outputs, first, arguments.outputs.num_logprob_ids,
              [&record](const TokenRecord& taken) { *record++ = taken; });
  }

  GR_DEVICE void draft(std::uint32_t index, SequenceCore& copy, const RowResult& result,
                       const DraftedRow& row) const {
    take_draft(copy, arguments.boundary, arguments.writer, result, arguments.drafts + row.begin,
               row.count, arguments.outputs, index, arguments.outputs.num_logprob_ids);
  }
};

}  // namespace glimprouter::device
