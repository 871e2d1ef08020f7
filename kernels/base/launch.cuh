// How a kernel is started: one function for nvcc and for the emulator.
#pragma once

#include <tuple>
#include <utility>

#include "kernels/base/device.cuh"

#if defined(__CUDACC__)
#include <cuda_runtime_api.h>
#else
#include "emulator/grid.hpp"
#endif

namespace glimprouter::device {

// A cudaStream_t without its header.
using Stream = void*;

// A cudaError_t without its header: 0 is success. What runs later may still fail later.
using LaunchStatus = int;
inline constexpr LaunchStatus kInvalidConfiguration = 9;  // cudaErrorInvalidConfiguration

// What of a device a launch depends on; no result does.
struct DeviceShape {
  int processors = 1;         // streaming multiprocessors
  bool programmatic = false;  // compute capability 9.0 or newer
};

struct GridSize {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

struct LaunchShape {
  GridSize grid = {};
  unsigned block = 1;  // threads
  Stream stream = nullptr;
  // The kernel may start before the one ahead of it in the stream has ended, up to its
  // wait_for_dependencies(). Compute capability 9.0 or newer.
  bool programmatic = false;
};

// Without grid and block yet.
inline LaunchShape shape_on(const DeviceShape& device, Stream stream) {
  LaunchShape shape;
  shape.stream = stream;
  shape.programmatic = device.programmatic;
  return shape;
}

// Starts the kernel, whose parameters take copies of the arguments. A grid of no blocks (an empty
// batch) is legal and does nothing. The emulator runs the whole grid before it returns.
template <typename... Parameters, typename... Arguments>
LaunchStatus launch(void (*kernel)(Parameters...), const LaunchShape& shape,
                    Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments),
                "launch: as many arguments as the kernel has parameters");
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return 0;
#if defined(__CUDACC__)
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.grid.x, shape.grid.y, shape.grid.z);
  config.blockDim = dim3(shape.block, 1, 1);
  config.stream = static_cast<cudaStream_t>(shape.stream);
  config.attrs = &attribute;
  config.numAttrs = shape.programmatic ? 1 : 0;
  return static_cast<LaunchStatus>(
      cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
#else
  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const Call call{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  const auto run_thread = [](const void* opaque) {
    const Call& copied = *static_cast<const Call*>(opaque);
    std::apply(copied.first, copied.second);
  };
  return simt::run_grid(
      {{shape.grid.x, shape.grid.y, shape.grid.z}, shape.block, shape.programmatic}, run_thread,
      &call);
#endif
}

}  // namespace glimprouter::device
