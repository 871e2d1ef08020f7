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

// One routed step: StepRouter::step on the device.
struct StepJob {
  // A sequence is read and written by one thread, field by field: in shared memory that takes a
  // tenth of the time.
  static constexpr std::uint32_t kWords = sizeof(SequenceCore) / sizeof(std::uint64_t);
  static_assert(sizeof(SequenceCore) % sizeof(std::uint64_t) == 0);
  struct Shared {
    alignas(SequenceCore) std::uint64_t words[kWords];
  };
  StepArguments arguments;

  GR_DEVICE const DeviceRowWorkspace& workspace() const { return arguments.workspace; }
  GR_DEVICE std::int32_t sequence_of(std::uint32_t index) const {
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
    const bool waits = waits_for(sequence.state, sequence.options.limits, arguments.model);
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
    RowRequest request = request_of(arguments.sequences[sequence_of(index)], arguments.model);
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
    write_statistics(arguments.outputs, index, invalid_result(RowStatus::kNotWaiting));
    write_decision(arguments.outputs, index, StepDecision{}, Phase::kDone);
    arguments.outputs.status[index] = static_cast<std::uint8_t>(RowStatus::kNotWaiting);
    arguments.outputs.step_index[index] = -1;
    for (std::int32_t i = 0; i < arguments.outputs.num_logprob_ids; ++i)
      logprobs(index)[i] = kNotANumber;
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
    if (threadIdx.x == 0) {
      advance_sequence(index, core_in(shared), result);
    }
    __syncthreads();
    std::uint64_t* const words = words_of(index);
    if (threadIdx.x < kWords) words[threadIdx.x] = shared.words[threadIdx.x];
  }

  GR_DEVICE void advance_sequence(std::uint32_t index, SequenceCore& sequence,
                                  const RowResult& result) const {
    const std::int32_t logged = sequence.state.think_tokens + sequence.state.answer_tokens;
    const StepDecision decision = step_sequence(sequence, arguments.boundary, arguments.model,
                                                result, arguments.outputs, index);
    if (decision.token >= 0) {
      arguments.log[sequence_of(index) * arguments.log_capacity + logged] = {
          decision.token, result.logprob, result.entropy, arguments.model};
    }
  }
};

}  // namespace glimprouter::device
