// The evaluation of rows, in a file of its own: the files of kernels compile side by side.
#include "cuda/cuda_device.hpp"
#include "kernels/base/operation.cuh"
#include "kernels/step/launch.cuh"

namespace glimprouter::cuda {

void evaluate(int device, const EvaluateArguments& arguments, DeviceStream stream) {
  device::Operation<Machine, device::launch_evaluate>::run(device, arguments, stream);
}

}  // namespace glimprouter::cuda
