// The columns of what a step says about each row: the one list that memory, kernels and bindings
// are made from.
#pragma once

#include <cstdint>
#include <vector>

namespace glimprouter {

// Statistics on request: one bit each of StepOutputs::fields. What is not asked for is not written,
// and not computed where that saves time.
enum class OutputField : std::uint32_t {
  kLogprob = 1u << 0,
  kLogsumexp = 1u << 1,
  kMaxProb = 1u << 2,
  kMargin = 1u << 3,
  kVarentropy = 1u << 4,
};
inline constexpr std::uint32_t kAllOutputFields = (1u << 5) - 1;

// Of<T>: how a column of T is held.
template <template <typename> typename Of>
struct StepColumns {
  Of<std::int32_t> token;       // committed in this call; -1: none
  Of<std::uint8_t> status;      // RowStatus
  Of<std::uint8_t> route;       // decision of this call: 0 none, 1 small, 2 large
  Of<std::uint8_t> phase;       // after this call
  Of<std::uint8_t> end_reason;  // EndReason of the step or answer that ended
  Of<std::int32_t> step_index;  // of the step that the token belongs to; -1: answer
  Of<std::int32_t> forced;      // closing ids that the caller appends now
  // Tokens that the model which the row waits for after this call may write, at most, before the
  // step, the thinking or the answer is over for it; 0: it waits for none.
  Of<std::int32_t> room;
  Of<float> entropy;  // nats
  // There where they are wanted:
  Of<float> logprob;  // raw, of the committed or candidate token
  Of<float> logsumexp;
  Of<float> max_prob;
  Of<float> margin;
  Of<float> varentropy;
  Of<float> logprobs;  // [capacity, ids] of logprob_ids
};

template <typename Value>
using ColumnVector = std::vector<Value>;
template <typename Value>
using ColumnPointer = Value*;
// Null where a column is not wanted.
using ColumnPointers = StepColumns<ColumnPointer>;

// Calls visit(name, fields, column, column of the other) for every column, in order. fields: the
// OutputField that asks for it; 0: always there; kByIds: as many values a row as there are ids.
inline constexpr std::uint32_t kByIds = 1u << 31;

template <typename Columns, typename Others, typename Visit>
void for_columns(Columns& columns, Others& others, Visit visit) {
  const auto bit = [](OutputField field) { return static_cast<std::uint32_t>(field); };
  visit("token", 0u, columns.token, others.token);
  visit("status", 0u, columns.status, others.status);
  visit("route", 0u, columns.route, others.route);
  visit("phase", 0u, columns.phase, others.phase);
  visit("end_reason", 0u, columns.end_reason, others.end_reason);
  visit("step_index", 0u, columns.step_index, others.step_index);
  visit("forced", 0u, columns.forced, others.forced);
  visit("room", 0u, columns.room, others.room);
  visit("entropy", 0u, columns.entropy, others.entropy);
  visit("logprob", bit(OutputField::kLogprob), columns.logprob, others.logprob);
  visit("logsumexp", bit(OutputField::kLogsumexp), columns.logsumexp, others.logsumexp);
  visit("max_prob", bit(OutputField::kMaxProb), columns.max_prob, others.max_prob);
  visit("margin", bit(OutputField::kMargin), columns.margin, others.margin);
  visit("varentropy", bit(OutputField::kVarentropy), columns.varentropy, others.varentropy);
  visit("logprobs", kByIds, columns.logprobs, others.logprobs);
}

}  // namespace glimprouter
