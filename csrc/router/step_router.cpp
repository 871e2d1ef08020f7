#include "glimprouter/step_router.hpp"

#include <algorithm>
#include <stdexcept>

#include "arithmetic/random.hpp"
#include "arithmetic/row_statistics.hpp"
#include "router/sequence.hpp"
#include "router/step_device.hpp"
#include "router/words.hpp"

namespace glimprouter {
namespace {

// Tokens that a log holds without growing; longer sequences let it double.
constexpr std::int64_t kReservedTokens = 16384;
// Rows of logits of one call that take no memory.
constexpr std::size_t kReservedRows = 256;

}  // namespace

StepRouter::StepRouter(std::shared_ptr<const StepBoundary> boundary,
                       std::shared_ptr<const StepBoundary> large_boundary,
                       std::int32_t max_sequences, const StepDeviceFactory& device)
    : boundary_(std::move(boundary)), large_boundary_(std::move(large_boundary)) {
  if (!boundary_) throw std::invalid_argument("a boundary is needed");
  if (!large_boundary_) large_boundary_ = boundary_;
  if (large_boundary_->delimiters() != boundary_->delimiters()) {
    throw std::invalid_argument(
        "boundary and large_boundary have different delimiters; steps would end differently for "
        "the two models");
  }
  if (max_sequences < 1) {
    throw std::invalid_argument("max_sequences must be >= 1, got " + std::to_string(max_sequences));
  }
  sequences_.resize(static_cast<std::size_t>(max_sequences));
  packed_.reserve(std::max(sequences_.size(), kReservedRows));
  if (device) {
    on_device_ = device(max_sequences, *boundary_, *large_boundary_);
    return;
  }
  results_.reserve(packed_.capacity());
  workspaces_.reserve(std::max(boundary_->vocabulary_size(), large_boundary_->vocabulary_size()));
}

StepRouter::~StepRouter() = default;

std::string StepRouter::device() const { return on_device_ ? on_device_->name() : "cpu"; }

bool StepRouter::reaches(std::int32_t device_type, std::int32_t device_id) const {
  constexpr std::int32_t kDlpackCpu = 1;
  return on_device_ ? on_device_->reaches(device_type, device_id) : device_type == kDlpackCpu;
}

Phase StepRouter::phase(std::int32_t row) { return sequence(row).state.phase; }

// The claim comes first, so that of two threads at most one is past it.
StepRouter::Claim::Claim(StepRouter& router) : router_(router) {
  if (router.in_use_.exchange(true)) {
    throw std::runtime_error(
        "this StepRouter is in a call of another thread; use one router per thread");
  }
}

StepRouter::Claim::~Claim() { router_.in_use_.store(false); }

StepRouter::Use::Use(StepRouter& router) : claim_(router) {
  const std::thread::id caller = std::this_thread::get_id();
  if (router.owner_ == std::thread::id()) router.owner_ = caller;
  if (router.owner_ != caller) {
    throw std::runtime_error(
        "this StepRouter belongs to another thread; use one router per thread, or call "
        "attach() from this thread when the other is finished with it");
  }
}

void StepRouter::attach() {
  const Claim claim(*this);
  owner_ = std::this_thread::get_id();
}

Sequence& StepRouter::slot(std::int32_t row) {
  if (row < 0 || static_cast<std::size_t>(row) >= sequences_.size() ||
      !sequences_[static_cast<std::size_t>(row)].open) {
    throw std::out_of_range("row " + std::to_string(row) +
                            " is not open; rows come from open(), fork() or load()");
  }
  return sequences_[static_cast<std::size_t>(row)];
}

Sequence& StepRouter::at(std::int32_t row) {
  Sequence& sequence = slot(row);
  if (sequence.stale) {
    on_device_->download(row, sequence);
    sequence.stale = false;
    sequence.phase_known = true;
  }
  return sequence;
}

void StepRouter::publish(std::int32_t row) {
  if (!on_device_) return;
  Sequence& sequence = sequences_[static_cast<std::size_t>(row)];
  on_device_->upload(row, sequence);
  sequence.stale = false;
  sequence.phase_known = true;
}

void StepRouter::replace(std::int32_t row, Sequence sequence) {
  if (on_device_) on_device_->upload(row, sequence);
  sequences_[static_cast<std::size_t>(row)] = std::move(sequence);
}

const Sequence& StepRouter::sequence(std::int32_t row) {
  const Use use(*this);
  return at(row);
}

std::int32_t StepRouter::free_row() const {
  for (std::size_t row = 0; row < sequences_.size(); ++row) {
    if (!sequences_[row].open) return static_cast<std::int32_t>(row);
  }
  throw std::runtime_error("all " + std::to_string(sequences_.size()) +
                           " rows are in use; close one, or construct the router with a larger "
                           "max_sequences");
}

std::int32_t StepRouter::open(const SequenceOptions& options) {
  const Use use(*this);
  const std::int32_t row = free_row();
  Sequence sequence;
  sequence.options = options;
  sequence.options.limits.num_close_tokens =
      static_cast<std::int32_t>(boundary_->definition().close_ids.size());
  sequence.options.shared_states = boundary_->shared_states(*large_boundary_);
  const std::int64_t longest = most_tokens(sequence);
  sequence.log.reserve(static_cast<std::size_t>(std::min(longest, kReservedTokens)));
  if (options.start.automaton >= boundary_->num_states()) {
    throw std::invalid_argument("the start of a sequence is of another boundary");
  }
  if (options.start.answering && options.limits.max_answer_tokens == 0) {
    throw std::invalid_argument(
        "the prompt's thinking is closed and max_answer_tokens is 0, so there is nothing to write");
  }
  begin(sequence);
  sequence.open = true;
  if (on_device_) on_device_->reserve_tokens(longest);
  replace(row, std::move(sequence));
  return row;
}

void StepRouter::close(std::int32_t row) {
  const Use use(*this);
  slot(row);
  replace(row, Sequence{});
}

std::int32_t StepRouter::fork(std::int32_t row, std::optional<std::uint64_t> substream) {
  const Use use(*this);
  Sequence& parent = at(row);
  const std::int32_t child = free_row();
  Sequence copy = parent;
  copy.log.reserve(parent.log.capacity());
  if (!substream) {
    const PhiloxBlock derived =
        philox4x32(PhiloxBlock{{static_cast<std::uint32_t>(parent.forks),
                                static_cast<std::uint32_t>(parent.forks >> 32), 0x666F726Bu, 0}},
                   parent.options.substream);
    substream = static_cast<std::uint64_t>(derived.word[1]) << 32 | derived.word[0];
  }
  copy.options.substream = *substream;
  copy.forks = 0;
  replace(child, std::move(copy));
  ++parent.forks;  // last: a fork that failed has no substream
  return child;
}

Sequence StepRouter::replayed(const Sequence& sequence, std::int32_t target) const {
  Sequence copy = sequence;
  copy.state = SequenceState{};
  copy.candidate_token = -1;
  copy.step_logprob = copy.step_entropy = 0;
  begin(copy);
  std::size_t kept = 0;
  for (; kept < sequence.log.size() && copy.state.position < target; ++kept) {
    const TokenRecord& record = sequence.log[kept];
    commit_record(copy, boundary(record.writer).table(), record);
  }
  copy.log.resize(kept);
  copy.log.reserve(sequence.log.capacity());
  return copy;
}

void StepRouter::rewind(std::int32_t row, std::int32_t count) {
  const Use use(*this);
  Sequence& sequence = at(row);
  if (count < 0 || count > sequence.state.position) {
    throw std::invalid_argument("cannot rewind row " + std::to_string(row) + " by " +
                                std::to_string(count) + " tokens: it has generated " +
                                std::to_string(sequence.state.position));
  }
  const std::int32_t target = sequence.state.position - count;
  Sequence rewound = replayed(sequence, target);
  if (rewound.state.position != target) {
    throw std::invalid_argument(
        "cannot rewind row " + std::to_string(row) + " to " + std::to_string(target) +
        " tokens: that lies inside the closing ids, which are appended as one; rewind to " +
        std::to_string(rewound.state.position) + " or to " +
        std::to_string(rewound.state.position - rewound.options.limits.num_close_tokens - 1));
  }
  replace(row, std::move(rewound));
}

std::int32_t StepRouter::end_thinking(std::int32_t row) {
  const Use use(*this);
  const Sequence& sequence = at(row);
  const SequenceState& state = sequence.state;
  if (state.phase == Phase::kAnswer || state.phase == Phase::kDone || state.think_tokens == 0) {
    throw std::invalid_argument(
        "cannot end the thinking of row " + std::to_string(row) +
        (state.think_tokens == 0 ? ": it has written none yet" : ": it has ended"));
  }
  Sequence shortened = sequence;
  shortened.options.limits.max_think_tokens = state.think_tokens;
  Sequence closed = replayed(shortened, state.position);
  replace(row, std::move(closed));
  return sequences_[static_cast<std::size_t>(row)].options.limits.num_close_tokens;
}

std::vector<std::int32_t> StepRouter::pending(Model model) {
  const Use use(*this);
  std::vector<std::int32_t> result;
  for (std::size_t row = 0; row < sequences_.size(); ++row) {
    const Sequence& sequence = sequences_[row];
    if (sequence.open && !sequence.phase_known) at(static_cast<std::int32_t>(row));
    if (sequence.open && waits_for(sequence.state, sequence.options.limits, model)) {
      result.push_back(static_cast<std::int32_t>(row));
    }
  }
  return result;
}

std::vector<std::int32_t> StepRouter::rows() {
  const Use use(*this);
  std::vector<std::int32_t> result;
  for (std::size_t row = 0; row < sequences_.size(); ++row) {
    if (sequences_[row].open) result.push_back(static_cast<std::int32_t>(row));
  }
  return result;
}

void StepRouter::decide(Model model, std::span<const std::int32_t> rows, StepOutputs& outputs) {
  const Use use(*this);
  check_batch(rows, static_cast<std::int64_t>(rows.size()), outputs);
  for (const std::int32_t row : rows) {
    const Sequence& sequence = at(row);
    const Phase phase = sequence.state.phase;
    const bool unseen = model == Model::kLarge && phase == Phase::kGlimpse &&
                        sequence.options.limits.route == RouteMode::kManual;
    if (phase != Phase::kAwaitDecision && !unseen) {
      throw std::invalid_argument("row " + std::to_string(row) + " has no decision to make: it " +
                                  phase_in_words(phase));
    }
  }
  const ColumnPointers columns = outputs.pointers();
  const auto ids = static_cast<std::int64_t>(outputs.logprob_ids.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Sequence& sequence = at(rows[i]);
    const auto index = static_cast<std::int64_t>(i);
    // Only what the candidate needs was kept of the row that was glimpsed.
    RowResult glimpsed = invalid_result(RowStatus::kOk);
    if (sequence.state.phase == Phase::kAwaitDecision) {
      glimpsed.entropy = sequence.candidate_entropy;
      glimpsed.logprob = sequence.candidate_logprob;
    }
    write_statistics(columns, index, glimpsed);
    columns.status[index] = static_cast<std::uint8_t>(RowStatus::kOk);
    columns.step_index[index] = sequence.state.step_index;
    std::fill_n(columns.logprobs + index * ids, ids, kNotANumber);
    StepDecision decision;
    decision.route = model == Model::kLarge ? 2 : 1;
    const std::int32_t token = sequence.candidate_token;
    sequence.candidate_token = -1;
    sequence.state.phase = model == Model::kLarge ? Phase::kLargeStep : Phase::kGlimpse;
    if (model == Model::kLarge) hand_over(sequence);
    if (model == Model::kSmall) {
      const TokenRecord record{token, sequence.candidate_logprob, sequence.candidate_entropy,
                               Model::kSmall};
      sequence.log.push_back(record);
      const TransitionResult transition = commit_record(sequence, boundary_->table(), record);
      decision.token = token;
      decision.end_reason = transition.end_reason;
      decision.forced = transition.forced_tokens;
    }
    write_decision(columns, index, decision, sequence);
    publish(rows[i]);
  }
}

}  // namespace glimprouter
