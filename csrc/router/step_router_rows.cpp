// StepRouter's calls over rows of logits: steps, verified drafts, drafts.
#include <stdexcept>
#include <string>

#include "arithmetic/row_statistics.hpp"
#include "glimprouter/step_router.hpp"
#include "router/sequence.hpp"
#include "router/step_device.hpp"
#include "router/words.hpp"

namespace glimprouter {
namespace {

constexpr std::int64_t kMaxLaunchedRows = 65535;

Model other(Model model) { return model == Model::kSmall ? Model::kLarge : Model::kSmall; }

// Only a sequence longer than the reserved log can allocate here; running out of memory then ends
// the process, for its token is committed.
void log(Sequence& sequence, const TokenRecord& record) noexcept { sequence.log.push_back(record); }

}  // namespace

void StepRouter::check_batch(std::span<const std::int32_t> rows, std::int64_t entries,
                             const StepOutputs& outputs) {
  if (entries > outputs.capacity) {
    throw std::invalid_argument("outputs were made for " + std::to_string(outputs.capacity) +
                                " rows, the batch has " + std::to_string(entries) +
                                "; call router.outputs(" + std::to_string(entries) + ")");
  }
  ++calls_;
  for (const std::int32_t row : rows) {
    Sequence& sequence = slot(row);
    if (sequence.last_call == calls_) {
      throw std::invalid_argument("row " + std::to_string(row) + " is named twice in one call");
    }
    sequence.last_call = calls_;
  }
}

void StepRouter::check_logits(Model model, const LogitsView& logits, std::int64_t rows,
                              const StepOutputs& outputs) const {
  const std::int64_t vocabulary = boundary(model).vocabulary_size();
  if (logits.rows != rows) {
    throw std::invalid_argument("logits have " + std::to_string(logits.rows) + " rows, but " +
                                std::to_string(rows) + " rows are named");
  }
  if (logits.width < vocabulary) {
    throw std::invalid_argument(
        "logits are " + std::to_string(logits.width) + " wide, narrower than the vocabulary of " +
        std::to_string(vocabulary) + "; wrong model, or wrong tokenizer for the boundary");
  }
  for (const std::int32_t id : outputs.logprob_ids) {
    if (id < 0 || id >= vocabulary) {
      throw std::invalid_argument("logprob_ids holds " + std::to_string(id) +
                                  ", outside the vocabulary of " + std::to_string(vocabulary));
    }
  }
}

void StepRouter::check_drafts(Model model, const DraftedTokens& drafts) const {
  if (drafts.counts.size() != drafts.rows.size()) {
    throw std::invalid_argument(
        "one count of drafts a row is needed: " + std::to_string(drafts.rows.size()) + ", got " +
        std::to_string(drafts.counts.size()));
  }
  std::int64_t total = 0;
  for (const std::int32_t count : drafts.counts) {
    if (count < 0) {
      throw std::invalid_argument("a row cannot have " + std::to_string(count) + " drafts");
    }
    total += count;
  }
  if (total != static_cast<std::int64_t>(drafts.tokens.size())) {
    throw std::invalid_argument("the counts name " + std::to_string(total) + " drafts, got " +
                                std::to_string(drafts.tokens.size()));
  }
  const std::int64_t vocabulary = boundary(model).vocabulary_size();
  for (const std::int32_t token : drafts.tokens) {
    if (token >= 0 && token < vocabulary) continue;
    throw std::invalid_argument("draft " + std::to_string(token) + " lies outside the " +
                                name_of(model) + " model's vocabulary of " +
                                std::to_string(vocabulary));
  }
}

std::int32_t StepRouter::room(std::int32_t row) {
  const Sequence& sequence = slot(row);
  return sequence.stale ? sequence.known_room : room_of(sequence.state, sequence.options.limits);
}

void StepRouter::check_waiting(Model writer, const DraftedTokens& drafts) {
  for (std::size_t i = 0; i < drafts.rows.size(); ++i) {
    const std::int32_t row = drafts.rows[i];
    const Sequence& sequence = slot(row);
    const std::string name = "row " + std::to_string(row);
    if (!sequence.phase_known) at(row);
    if (!waits_for(sequence.state, sequence.options.limits, writer)) {
      throw std::invalid_argument(name + " does not wait for the " + name_of(writer) +
                                  " model: it " + phase_in_words(sequence.state.phase) +
                                  "; use the rows of pending(\"" + name_of(writer) + "\")");
    }
    if (drafts.counts.empty() || drafts.counts[i] < room(row)) continue;
    throw std::invalid_argument(name + " takes at most " + std::to_string(room(row)) +
                                " tokens more from the " + name_of(writer) + " model, got " +
                                std::to_string(drafts.counts[i]) +
                                " drafts for them and for the last; draft fewer than the column "
                                "room of its last outputs says");
  }
}

// The rows of logits of a call, in order.
void StepRouter::pack(RowsOf kind, const DraftedTokens& drafts) {
  packed_.clear();
  std::int32_t begin = 0;
  for (std::size_t i = 0; i < drafts.rows.size(); ++i) {
    const std::int32_t count = drafts.counts.empty() ? 0 : drafts.counts[i];
    for (std::int32_t ahead = kind == RowsOf::kDraft ? count : 0; ahead <= count; ++ahead) {
      packed_.push_back({drafts.rows[i], ahead, begin, count});
    }
    begin += count;
  }
}

void StepRouter::step(Model model, const LogitsView& logits, std::span<const std::int32_t> rows,
                      StepOutputs& outputs, DeviceStream stream) {
  call(RowsOf::kStep, model, logits, {rows, {}, {}}, outputs, stream);
}

void StepRouter::verify(Model model, const LogitsView& logits, const DraftedTokens& drafts,
                        StepOutputs& outputs, DeviceStream stream) {
  check_drafts(model, drafts);
  call(RowsOf::kVerify, model, logits, drafts, outputs, stream);
}

void StepRouter::draft(Model model, const LogitsView& logits, const DraftedTokens& drafts,
                       StepOutputs& outputs, DeviceStream stream) {
  check_drafts(model, drafts);
  call(RowsOf::kDraft, model, logits, drafts, outputs, stream);
}

void StepRouter::call(RowsOf kind, Model model, const LogitsView& logits,
                      const DraftedTokens& drafts, StepOutputs& outputs, DeviceStream stream) {
  const Use use(*this);
  const Model writer = kind == RowsOf::kDraft ? other(model) : model;
  const std::size_t verified = kind == RowsOf::kVerify ? drafts.tokens.size() : 0;
  const auto entries = static_cast<std::int64_t>(drafts.rows.size() + verified);
  check_logits(model, logits, entries, outputs);
  check_batch(drafts.rows, entries, outputs);
  if (on_device_ && entries > kMaxLaunchedRows) {
    throw std::invalid_argument("a launch takes at most " + std::to_string(kMaxLaunchedRows) +
                                " rows of logits, got " + std::to_string(entries));
  }
  check_waiting(writer, drafts);
  pack(kind, drafts);
  LogitsView cut = logits;
  cut.width = boundary(model).vocabulary_size();
  if (on_device_) {
    StepCall call{kind, model, writer, cut, drafts.rows};
    if (kind != RowsOf::kStep) {
      call.drafted = packed_;
      call.drafts = drafts.tokens;
    }
    start(call, outputs, stream);
    finish(kind, outputs);
    if (kind != RowsOf::kDraft) note_standing(outputs);
    return;
  }
  results_.resize(packed_.size());
  evaluate(writer, cut, outputs);
  if (kind == RowsOf::kDraft) return follow(model, writer, drafts, outputs);
  take(model, drafts, outputs);
}

// All rows that are packed, side by side.
void StepRouter::evaluate(Model writer, const LogitsView& logits, StepOutputs& outputs) {
  const auto num_ids = static_cast<std::int32_t>(outputs.logprob_ids.size());
  auto body = [&](std::int64_t i, RowWorkspace& workspace) noexcept {
    const auto index = static_cast<std::size_t>(i);
    const DraftedRow& row = packed_[index];
    RowRequest request =
        request_of(sequences_[static_cast<std::size_t>(row.sequence)], writer, row.ahead);
    request.want_varentropy = outputs.wants(OutputField::kVarentropy);
    request.logprob_ids = outputs.logprob_ids.data();
    request.num_logprob_ids = num_ids;
    results_[index] = evaluate_row(logits.row(i, logits.width), request, workspace,
                                   outputs.logprobs.data() + i * num_ids);
  };
  parallel_rows(logits.rows, logits.width, workspaces_, RowBody(body));
}

// What came of them, sequence by sequence.
void StepRouter::take(Model model, const DraftedTokens& drafts, StepOutputs& outputs) {
  const ColumnPointers columns = outputs.pointers();
  const auto num_ids = static_cast<std::int32_t>(outputs.logprob_ids.size());
  for (std::size_t i = 0; i < packed_.size();) {
    const DraftedRow& row = packed_[i];
    Sequence& sequence = sequences_[static_cast<std::size_t>(row.sequence)];
    take_rows(sequence, boundary(model).table(), model, results_.data() + i,
              drafts.tokens.data() + row.begin, row.count, columns, static_cast<std::int64_t>(i),
              num_ids, [&](const TokenRecord& record) { log(sequence, record); });
    i += static_cast<std::size_t>(row.count) + 1;
  }
}

// The same for drafts, which change nothing.
void StepRouter::follow(Model model, Model writer, const DraftedTokens& drafts,
                        StepOutputs& outputs) {
  const ColumnPointers columns = outputs.pointers();
  const auto num_ids = static_cast<std::int32_t>(outputs.logprob_ids.size());
  for (std::size_t i = 0; i < packed_.size(); ++i) {
    const DraftedRow& row = packed_[i];
    SequenceCore copy = sequences_[static_cast<std::size_t>(row.sequence)];
    take_draft(copy, boundary(model).table(), writer, results_[i], drafts.tokens.data() + row.begin,
               row.count, columns, static_cast<std::int64_t>(i), num_ids);
  }
}

// Where the rows of a call on the device stand: the last entry of each says it.
void StepRouter::note_standing(const StepOutputs& outputs) {
  for (std::size_t i = 0; i < packed_.size(); ++i) {
    const DraftedRow& row = packed_[i];
    if (row.ahead != row.count) continue;
    Sequence& sequence = slot(row.sequence);
    sequence.state.phase = static_cast<Phase>(outputs.phase[i]);
    sequence.known_room = outputs.room[i];
    sequence.phase_known = true;
  }
}

}  // namespace glimprouter
