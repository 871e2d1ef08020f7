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
  static constexpr unsigned kBlocksPerProcessor = 2;  // leaves 128 registers a thread
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

// StepRouter's calls over rows of logits on the device: steps, or verified drafts and drafts.
template <bool kDrafts>
struct SequenceJob {
  // The two take more registers than a step, which keeps its own kernel.
  static constexpr unsigned kBlocksPerProcessor = kDrafts ? 1 : 2;
  // A sequence is read and written by one thread, field by field: in shared memory that takes a
  // tenth of the time.
  static constexpr std::uint32_t kWords = sizeof(SequenceCore) / sizeof(std::uint64_t);
  static_assert(sizeof(SequenceCore) % sizeof(std::uint64_t) == 0);
  struct Shared {
    alignas(SequenceCore) std::uint64_t words[kWords];
    bool changed;
  };
  StepArguments arguments;

  GR_DEVICE const DeviceRowWorkspace& workspace() const { return arguments.workspace; }
  GR_DEVICE std::int32_t sequence_of(std::uint32_t index) const {
    if constexpr (kDrafts) return arguments.drafted[index].sequence;
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
    std::int32_t ahead = 0;
    if constexpr (kDrafts) ahead = arguments.drafted[index].ahead;
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
    if constexpr (kDrafts) __syncthreads();
    if (threadIdx.x == 0) shared.changed = finish_alone(index, result, shared);
    __syncthreads();
    if (kDrafts && !shared.changed) return;
    std::uint64_t* const words = words_of(index);
    if (threadIdx.x < kWords) words[threadIdx.x] = shared.words[threadIdx.x];
  }

  GR_DEVICE bool finish_alone(std::uint32_t index, const RowResult& result, Shared& shared) const {
    SequenceCore& sequence = core_in(shared);
    if constexpr (!kDrafts) {
      step(index, sequence, result);
      return true;
    } else {
      const DraftedRow& row = arguments.drafted[index];
      if (arguments.kind == RowsOf::kVerify) return verify(index, result, sequence, row);
      take_draft(sequence, arguments.boundary, arguments.writer, result,
                 arguments.drafts + row.begin, row.count, arguments.outputs, index,
                 arguments.outputs.num_logprob_ids);
      return false;
    }
  }

  // As take() does without drafts, which would take more registers here.
  GR_DEVICE void step(std::uint32_t index, SequenceCore& sequence, const RowResult& result) const {
    const std::int32_t logged = sequence.state.think_tokens + sequence.state.answer_tokens;
    const StepDecision decision = step_sequence(sequence, arguments.boundary, arguments.model,
                                                result, arguments.outputs, index);
    if (decision.token >= 0) {
      arguments.log[sequence_of(index) * arguments.log_capacity + logged] = {
          decision.token, result.logprob, result.entropy, arguments.model};
    }
  }

  // The last row of a sequence to be finished takes them all, in order: nobody has written the
  // sequence since its block has read it.
  GR_DEVICE bool verify(std::uint32_t index, const RowResult& result, SequenceCore& sequence,
                        const DraftedRow& row) const {
    const std::uint32_t first = index - static_cast<std::uint32_t>(row.ahead);
    const auto last = static_cast<std::uint32_t>(row.count);
    arguments.results[index] = result;
    std::uint32_t* const ticket = arguments.workspace.tickets + gridDim.y + first;
    if (last > 0 && ticket_increment(ticket, last) != last) return false;
    __threadfence();
    take(first, sequence, arguments.results + first, row);
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
};

using StepJob = SequenceJob<false>;
using DraftJob = SequenceJob<true>;

}  // namespace glimprouter::device
