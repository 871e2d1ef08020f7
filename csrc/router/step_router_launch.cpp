// StepRouter's steps elsewhere than on the CPU.
#include <stdexcept>
#include <string>

#include "glimprouter/step_router.hpp"
#include "glimprouter/types/device_lost.hpp"
#include "router/sequence.hpp"
#include "router/step_device.hpp"

namespace glimprouter {

void StepRouter::start(StepCall call, StepOutputs& outputs, DeviceStream stream) {
  call.logits.width = boundary(call.model).vocabulary_size();
  outputs.launched_rows.reserve(call.rows.size());  // what may fail comes before the launch
  on_device_->launch(call, outputs, stream);
  outputs.launched_rows.assign(call.rows.begin(), call.rows.end());
  outputs.launched = call.logits.rows;
}

// A step that did not come back from a device that is lost leaves what the host knows readable.
void StepRouter::finish(RowsOf kind, StepOutputs& outputs) {
  const auto mark = [&] {
    if (kind != RowsOf::kDraft) mark_stale(outputs);
  };
  try {
    on_device_->collect(outputs);
  } catch (const DeviceLost&) {
    throw;
  } catch (...) {
    mark();
    throw;
  }
  mark();
}

// The device is ahead of the host for the rows of a launch: all rows where it named them itself.
void StepRouter::mark_stale(const StepOutputs& outputs) {
  const auto mark = [](Sequence& sequence) {
    sequence.stale = sequence.open;
    sequence.phase_known = !sequence.open;
  };
  if (outputs.launched_rows.empty()) {
    for (Sequence& sequence : sequences_) mark(sequence);
  }
  for (const std::int32_t row : outputs.launched_rows) {
    mark(sequences_[static_cast<std::size_t>(row)]);
  }
}

void StepRouter::launch(Model model, const LogitsView& logits, std::span<const std::int32_t> rows,
                        const std::int32_t* device_rows, StepOutputs& outputs,
                        DeviceStream stream) {
  const Use use(*this);
  if (!on_device_) {
    throw std::runtime_error(
        "launch() needs a router on a device; this one is on the CPU: call "
        "step()");
  }
  check_logits(model, logits,
               device_rows != nullptr ? logits.rows : static_cast<std::int64_t>(rows.size()),
               outputs);
  if (logits.rows > static_cast<std::int64_t>(sequences_.size())) {
    throw std::invalid_argument("logits have " + std::to_string(logits.rows) +
                                " rows, the router " + std::to_string(sequences_.size()));
  }
  if (logits.rows > outputs.capacity) {
    throw std::invalid_argument("outputs were made for " + std::to_string(outputs.capacity) +
                                " rows, the batch has " + std::to_string(logits.rows));
  }
  check_batch(rows, logits.rows, outputs);
  StepCall call;
  call.model = call.writer = model;
  call.logits = logits;
  call.rows = rows;
  call.device_rows = device_rows;
  start(call, outputs, stream);
  mark_stale(outputs);
}

void StepRouter::wait(StepOutputs& outputs) {
  const Use use(*this);
  if (!on_device_) return;  // on the CPU a step is finished when it returns
  if (outputs.device == nullptr) {
    throw std::invalid_argument("these outputs belong to no launch of this router");
  }
  on_device_->collect_all(outputs);
  mark_stale(outputs);  // again: a replayed graph has gone on since the launch
}

void StepRouter::attach_outputs(StepOutputs& outputs) {
  const Use use(*this);
  if (on_device_) on_device_->attach(outputs);
}

}  // namespace glimprouter
