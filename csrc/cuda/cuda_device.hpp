// What every file of launches needs of the CUDA runtime: errors, the current device, what a
// launch depends on. Internal.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "device/device_backend.hpp"
#include "kernels/base/launch.cuh"

namespace glimprouter::cuda {

constexpr int kCurrent = -1;
// Throws std::runtime_error with the runtime's own message and what to do: DeviceLost where the
// error leaves nothing to do with the device, which is the current one unless it is named.
void check(cudaError_t error, const std::string& what, int device = kCurrent);

// Makes the device current for a call and the caller's device current again after it.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&before_), "the current CUDA device");
    if (before_ == device) return;
    check(cudaSetDevice(device), "CUDA device " + std::to_string(device), device);
    changed_ = true;
  }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

const device::DeviceShape& shape_of(int device);

// How kernels are started on a CUDA device (kernels/base/operation.cuh).
struct Machine {
  template <typename Launcher>
  static void launch(int device, const Launcher& launcher) {
    const CurrentDevice current(device);
    check(static_cast<cudaError_t>(launcher(shape_of(device))), "launching a kernel");
  }
};

// The operations, each in a file of its own.
void evaluate(int device, const EvaluateArguments& arguments, DeviceStream stream);
void step(int device, const StepArguments& arguments, DeviceStream stream);
extern const PageOperations kPages;
extern const LayerOperations kLayers;

}  // namespace glimprouter::cuda
