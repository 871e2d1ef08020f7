#include "loop/passes_ahead.hpp"

#include <algorithm>
#include <cstddef>
#include <exception>
#include <stdexcept>
#include <vector>

namespace glimprouter {
namespace {

// Whether a row that was not at an end goes on with the same model.
bool waits_for(Model model, Phase phase) {
  return phase == (model == Model::kSmall ? Phase::kSmallStep : Phase::kLargeStep) ||
         phase == Phase::kAnswer;
}

// Whether each of the first rows wants the next token of the same model, and nothing else.
bool all_go_on(const StepOutputs& outputs, std::size_t rows, Model model) {
  for (std::size_t i = 0; i < rows; ++i) {
    const bool plain = outputs.status[i] == 0 && outputs.token[i] >= 0 && outputs.forced[i] == 0;
    const bool ended = outputs.end_reason[i] != 0;
    if (!plain || ended || !waits_for(model, static_cast<Phase>(outputs.phase[i]))) return false;
  }
  return true;
}

// The sequences' tokens of a step.
void append(const Writing& writing, const StepOutputs& outputs) {
  for (std::size_t i = 0; i < writing.sequences.size(); ++i) {
    writing.cache.append(writing.model_index, writing.sequences[i],
                         std::span(&outputs.token[i], 1));
  }
}

void compute(const Writing& writing, std::vector<float>& logits) {
  KvCache& cache = writing.cache;
  const RaggedBatch batch = cache.prepare(writing.model_index, writing.sequences);
  try {
    writing.decoder.run(cache.pool(writing.model_index), batch, writing.angles, batch.last_rows,
                        logits.data());
  } catch (...) {
    cache.abandon(batch);
    throw;
  }
  cache.complete(batch);
}

void copy_entries(StepOutputs& from, std::size_t count, StepOutputs& to, std::size_t first) {
  for_columns(from, to, [&](const char*, std::uint32_t, auto& source, auto& target) {
    if (source.empty() || target.empty()) return;
    std::copy_n(source.begin(), count, target.begin() + static_cast<std::ptrdiff_t>(first));
  });
}

void check(const Writing& writing, const StepOutputs& last, const StepOutputs& ahead) {
  if (writing.rows.empty() || writing.rows.size() != writing.sequences.size()) {
    throw std::invalid_argument("one row is needed for each sequence, and at least one");
  }
  if (last.capacity < static_cast<std::int64_t>(writing.rows.size())) {
    throw std::invalid_argument("the outputs are not of a step of these rows");
  }
  if (last.fields != 0 || ahead.fields != 0) {
    throw std::invalid_argument("passes ahead give no further statistics");
  }
  if (!writing.router.on_cpu()) throw std::invalid_argument("the router must be on the CPU");
}

}  // namespace

std::int32_t passes_ahead(const Writing& writing, const StepOutputs& last, StepOutputs& ahead,
                          std::chrono::nanoseconds most_time) {
  check(writing, last, ahead);
  ahead.status.assign(ahead.status.size(), static_cast<std::uint8_t>(RowStatus::kNotReached));
  const auto start = std::chrono::steady_clock::now();
  const std::size_t rows = writing.rows.size();
  const std::int64_t width = writing.decoder.vocabulary();
  std::vector<float> logits(rows * static_cast<std::size_t>(width));
  const LogitsView view{reinterpret_cast<const char*>(logits.data()), DataType::kFloat32,
                        static_cast<std::int64_t>(rows), width, width};
  StepOutputs step(static_cast<std::int64_t>(rows), 0, {});
  const StepOutputs* latest = &last;
  std::size_t done = 0;
  while ((done + 1) * rows <= static_cast<std::size_t>(ahead.capacity) &&
         std::chrono::steady_clock::now() - start < most_time &&
         all_go_on(*latest, rows, writing.model)) {
    try {
      append(writing, *latest);
      compute(writing, logits);
      writing.router.step(writing.model, view, writing.rows, step);
    } catch (const std::exception&) {  // whoever goes on from here finds out why
      break;
    }
    copy_entries(step, rows, ahead, done * rows);
    latest = &step;
    ++done;
  }
  return static_cast<std::int32_t>(done);
}

}  // namespace glimprouter
