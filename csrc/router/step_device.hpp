// Where the sequences of a router live when steps run elsewhere than on the CPU. Implemented in
// device/, which knows how.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "glimprouter/types/device_stream.hpp"
#include "glimprouter/types/drafted_rows.hpp"
#include "glimprouter/types/row_view.hpp"
#include "glimprouter/types/step_outputs.hpp"
#include "glimprouter/types/step_types.hpp"
#include "router/sequence.hpp"

namespace glimprouter {

// One launch over rows of logits.
struct StepCall {
  RowsOf kind = RowsOf::kStep;
  Model model = Model::kSmall;   // whose logits
  Model writer = Model::kSmall;  // that the rows wait for: the other one where rows are drafted
  LogitsView logits{};
  std::span<const std::int32_t> rows;         // sequences, each once
  const std::int32_t* device_rows = nullptr;  // or [logits.rows] in device memory: of a step
  std::span<const DraftedRow> drafted = {};   // [logits.rows], but for a step
  std::span<const std::int32_t> drafts = {};
};

// The device holds what a step reads and writes; the router's copy is brought up to date when
// someone asks for it, and written back when a call other than a step has changed it.
class StepDevice {
 public:
  StepDevice() = default;
  virtual ~StepDevice() = default;
  StepDevice(const StepDevice&) = delete;
  StepDevice& operator=(const StepDevice&) = delete;

  virtual std::string name() const = 0;
  // Whether a tensor on this device, by DLPack's type and number, is where the steps run.
  virtual bool reaches(std::int32_t device_type, std::int32_t device_id) const = 0;

  // Room for the log of a sequence of so many tokens. May allocate.
  virtual void reserve_tokens(std::int64_t tokens) = 0;
  // The log, then the core, then whether the row is open: if it fails, the row is as it was but for
  // records behind its log.
  virtual void upload(std::int32_t row, const Sequence& sequence) = 0;
  virtual void download(std::int32_t row, Sequence& sequence) = 0;

  // Memory that this device writes, for outputs that have none yet.
  virtual void attach(StepOutputs& outputs) const = 0;
  // Returns when the launch is enqueued.
  virtual void launch(const StepCall& call, StepOutputs& outputs, DeviceStream stream) = 0;
  // Waits for the last launch, or for everything that the device does, and fills the outputs.
  virtual void collect(StepOutputs& outputs) const = 0;
  virtual void collect_all(StepOutputs& outputs) const = 0;
};

}  // namespace glimprouter
