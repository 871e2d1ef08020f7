// A launcher as an entry of a device's table (DeviceBackend), for every kind of device.
#pragma once

#include "device/device_backend.hpp"
#include "kernels/base/launch.cuh"

namespace glimprouter::device {

// Machine::launch(device, launcher) makes the device current, calls launcher(shape of the device)
// and throws std::runtime_error unless it gives 0.
template <typename Machine, auto kLaunch>
struct Operation;

template <typename Machine, typename Arguments,
          LaunchStatus (*kLaunch)(const Arguments&, const DeviceShape&, Stream)>
struct Operation<Machine, kLaunch> {
  static void run(int device, const Arguments& arguments, DeviceStream stream) {
    Machine::launch(device,
                    [&](const DeviceShape& shape) { return kLaunch(arguments, shape, stream); });
  }
};

}  // namespace glimprouter::device
