#include "glimprouter/steps_on.hpp"

#include <memory>

#include "device/device_sequences.hpp"

namespace glimprouter {

StepDeviceFactory device_steps(const Device& device) {
  return
      [device](std::int32_t max_sequences, const StepBoundary& small, const StepBoundary& large) {
        return std::make_unique<DeviceSequences>(device, max_sequences, small, large);
      };
}

StepDeviceFactory steps_on(std::string_view place) {
  return place == "cpu" ? StepDeviceFactory() : device_steps(find_device(place));
}

}  // namespace glimprouter
