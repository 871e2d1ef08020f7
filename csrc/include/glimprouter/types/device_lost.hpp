// A device that is lost: what a caller can tell apart from every other error of a device.
#pragma once

#include <stdexcept>
#include <string>

namespace glimprouter {

// Nothing can be done with the device any more in this process: every later call that needs it
// throws this, too. What the host knows is as it was after the last call that came back.
class DeviceLost : public std::runtime_error {
 public:
  // `device` is a name such as "cuda:0"; `reason` what failed, and the name of the device's error.
  DeviceLost(const std::string& device, const std::string& reason)
      : std::runtime_error(device + " is lost: " + reason +
                           "; this process can compute nothing on it any more: start it anew. "
                           "Results so far can still be read, and saved sequences be loaded in "
                           "the new process") {}
};

}  // namespace glimprouter
