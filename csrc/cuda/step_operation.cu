// The fused step of rows, in a file of its own: the files of kernels compile side by side.
#include "cuda/cuda_device.hpp"
#include "kernels/base/operation.cuh"
#include "kernels/step/launch.cuh"

namespace glimprouter::cuda {

void step(int device, const StepArguments& arguments, DeviceStream stream) {
  device::Operation<Machine, device::launch_step>::run(device, arguments, stream);
}

}  // namespace glimprouter::cuda
