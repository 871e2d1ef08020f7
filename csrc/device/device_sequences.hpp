// The sequences of a StepRouter in the memory of a device, and the launches over them. Internal.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/device_backend.hpp"
#include "device/stream_scratch.hpp"
#include "glimprouter/step_router.hpp"
#include "glimprouter/types/step_outputs.hpp"
#include "router/step_device.hpp"

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

class DeviceSequences final : public StepDevice {
 public:
  DeviceSequences(const Device& device, std::int32_t max_sequences, const StepBoundary& small,
                  const StepBoundary& large);

  std::string name() const override { return device_.name(); }
  bool reaches(std::int32_t device_type, std::int32_t device_id) const override {
    return device_.holds(device_type, device_id);
  }
  void reserve_tokens(std::int64_t tokens) override;
  void upload(std::int32_t row, const Sequence& sequence) override;
  void download(std::int32_t row, Sequence& sequence) override;
  void attach(StepOutputs& outputs) const override;
  void launch(const StepCall& call, StepOutputs& outputs, DeviceStream stream) override;
  void collect(StepOutputs& outputs) const override;
  void collect_all(StepOutputs& outputs) const override;

 private:
  BoundaryTable table(Model model) const;
  bool attached(const StepOutputs& outputs) const;
  void check_capture(std::size_t rows, const StepOutputs& outputs, DeviceStream stream) const;
  void take_scratch(const StepCall& call, DeviceStream stream);
  // What a launch reads of a list of the caller's.
  template <typename Value>
  const Value* send(std::span<const Value> values, const StreamScratch& memory,
                    DeviceStream stream) const;
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
  // Of verified and drafted rows; a captured step keeps its own scratch, which never grows.
  StreamScratch drafted_;
  StreamScratch drafts_;
  StreamScratch drafted_tiles_;
  StreamScratch drafted_tickets_;
  StreamScratch results_;
  DeviceMemory log_;
  std::int64_t log_capacity_ = 0;
  DeviceStream stream_ = nullptr;  // of the last launch
};

// Makes routers on a device (steps_on.hpp takes it by name).
StepDeviceFactory device_steps(const Device& device);

}  // namespace glimprouter
