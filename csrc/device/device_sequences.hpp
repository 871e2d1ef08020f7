// The sequences of a StepRouter in the memory of a device, and the launches over them. Internal.
//
// The device holds what a step reads and writes; the host's copy is brought up to date when someone
// asks for it, and written back when a call other than a step has changed it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "device/device_backend.hpp"
#include "device/stream_scratch.hpp"
#include "glimprouter/step_outputs.hpp"
#include "glimprouter/step_router.hpp"

namespace glimprouter {

// Where a launch leaves its outputs: one block of pinned host memory, which a device writes as its
// own. A copy behind the launch would take as long as the launch.
class DeviceOutputs {
 public:
  DeviceOutputs(const Device& device, const StepOutputs& outputs);
  // Waits for the device, which may be writing still.
  ~DeviceOutputs();
  DeviceOutputs(const DeviceOutputs&) = delete;
  DeviceOutputs& operator=(const DeviceOutputs&) = delete;

  const Device& device() const { return device_; }
  const DeviceStepOutputs& view() const { return view_; }
  // After the launch: fills the fields of the first `rows` rows.
  void unpack(StepOutputs& outputs, std::int64_t rows) const;

 private:
  Device device_;
  DeviceStepOutputs view_{};
  DeviceMemory logprob_ids_;
  PinnedMemory block_;
};

// Tokens that a sequence may commit, or has committed.
inline std::int64_t most_tokens(const Sequence& sequence) {
  const SequenceLimits& limits = sequence.options.limits;
  const std::int64_t allowed =
      static_cast<std::int64_t>(limits.max_think_tokens) + limits.max_answer_tokens;
  const auto committed = static_cast<std::int64_t>(sequence.log.size());
  return allowed > committed ? allowed : committed;
}

class DeviceSequences {
 public:
  DeviceSequences(const Device& device, std::int32_t max_sequences, const StepBoundary& small,
                  const StepBoundary& large);

  const Device& device() const { return device_; }

  // Room for the log of a sequence of so many tokens. May allocate.
  void reserve_tokens(std::int64_t tokens);
  // The log, then the core, then whether the row is open: if it fails, the row is as it was but for
  // records behind its log.
  void upload(std::int32_t row, const Sequence& sequence);
  void download(std::int32_t row, Sequence& sequence);
  // Memory that this device writes, for outputs that have none yet.
  bool attached(const StepOutputs& outputs) const;
  void attach(StepOutputs& outputs) const;

  // Row numbers: `rows`, or `device_rows` [logits.rows] in device memory. Returns when the launch
  // is enqueued.
  void launch(Model model, const LogitsView& logits, std::span<const std::int32_t> rows,
              const std::int32_t* device_rows, StepOutputs& outputs, DeviceStream stream);
  // Waits for the last launch, or for everything that the device does, and fills the outputs.
  void collect(StepOutputs& outputs) const;
  void collect_all(StepOutputs& outputs) const;

 private:
  BoundaryTable table(Model model) const;
  void check_capture(std::size_t rows, const StepOutputs& outputs, DeviceStream stream) const;
  void copy(void* target, const void* source, std::size_t bytes);

  Device device_;
  std::int32_t max_sequences_;
  DeviceMemory tables_[2];
  DeviceMemory texts_[2];
  std::int32_t num_states_[2];
  StreamScratch tiles_;
  StreamScratch tickets_;
  DeviceMemory cores_;
  DeviceMemory open_;
  std::vector<std::uint8_t> known_open_;  // what open_ holds
  StreamScratch row_numbers_;
  DeviceMemory log_;
  std::int64_t log_capacity_ = 0;
  DeviceStream stream_ = nullptr;  // of the last launch
};

}  // namespace glimprouter
