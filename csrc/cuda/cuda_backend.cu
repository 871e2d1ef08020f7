// The CUDA device: memory, copies and launches through the statically linked runtime, which opens
// the driver when it is first needed; so the library loads on machines that have none.
#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/cuda_device.hpp"
#include "device/device_backend.hpp"
#include "device/lost_codes.hpp"

namespace glimprouter {
namespace cuda {

static_assert(device::losing_error(cudaErrorDevicesUnavailable) != nullptr);
static_assert(device::losing_error(cudaErrorECCUncorrectable) != nullptr);
static_assert(device::losing_error(cudaErrorNvlinkUncorrectable) != nullptr);
static_assert(device::losing_error(cudaErrorIllegalAddress) != nullptr);
static_assert(device::losing_error(cudaErrorLaunchTimeout) != nullptr);
static_assert(device::losing_error(cudaErrorAssert) != nullptr);
static_assert(device::losing_error(cudaErrorHardwareStackError) != nullptr);
static_assert(device::losing_error(cudaErrorIllegalInstruction) != nullptr);
static_assert(device::losing_error(cudaErrorMisalignedAddress) != nullptr);
static_assert(device::losing_error(cudaErrorInvalidAddressSpace) != nullptr);
static_assert(device::losing_error(cudaErrorInvalidPc) != nullptr);
static_assert(device::losing_error(cudaErrorLaunchFailure) != nullptr);
static_assert(device::losing_error(cudaErrorMemoryAllocation) == nullptr);

void check(cudaError_t error, const std::string& what, int device) {
  if (error == cudaSuccess) return;
  std::string message = what + ": " + cudaGetErrorString(error);
  if (device::losing_error(error) != nullptr) {  // it stays: every later call gives it again
    if (device == kCurrent && cudaGetDevice(&device) != cudaSuccess) device = 0;
    device::throw_if_lost(error, "cuda:" + std::to_string(device), message);
  }
  if (error == cudaErrorMemoryAllocation) {
    message += "; free device memory, or ask for less";
  } else if (error == cudaErrorInsufficientDriver) {
    message += "; this build needs a newer NVIDIA driver";
  }
  cudaGetLastError();  // a sticky-free error must not be found by the next call
  throw std::runtime_error(message);
}

}  // namespace cuda

namespace {

using cuda::check;
using cuda::CurrentDevice;

constexpr int kDlpackCuda = 2;
constexpr int kMaxDevices = 64;

int device_count(std::string* why) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) return count;
  cudaGetLastError();
  *why = cudaGetErrorString(error);
  return 0;
}

device::DeviceShape query_shape(int device) {
  device::DeviceShape shape;
  int major = 0;
  check(cudaDeviceGetAttribute(&shape.processors, cudaDevAttrMultiProcessorCount, device),
        "the number of multiprocessors");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "the compute capability");
  shape.programmatic = major >= 9;
  return shape;
}

}  // namespace

const device::DeviceShape& cuda::shape_of(int device) {
  static std::array<device::DeviceShape, kMaxDevices> shapes = [] {
    std::array<device::DeviceShape, kMaxDevices> result{};
    std::string why;
    const int count = device_count(&why);
    for (int i = 0; i < count && i < kMaxDevices; ++i) result[i] = query_shape(i);
    return result;
  }();
  return shapes[static_cast<std::size_t>(device)];
}

namespace {

void* allocate(int device, std::size_t bytes) {
  const CurrentDevice current(device);
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes),
        "allocating " + std::to_string(bytes) + " bytes on cuda:" + std::to_string(device));
  return memory;
}

// Errors at release have no one to go to: the process may be on its way out, the driver gone.
void release(int device, void* memory) {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess) return;
  if (before != device) cudaSetDevice(device);
  cudaFree(memory);
  if (before != device) cudaSetDevice(before);
}

void* allocate_pinned(std::size_t bytes) {
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes), "allocating pinned host memory");
  return memory;
}

void release_pinned(void* memory) { cudaFreeHost(memory); }

void copy(int device, void* target, const void* source, std::size_t bytes, DeviceStream stream) {
  const CurrentDevice current(device);
  check(
      cudaMemcpyAsync(target, source, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)),
      "copying");
}

void clear(int device, void* memory, std::size_t bytes, DeviceStream stream) {
  const CurrentDevice current(device);
  check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)), "clearing memory");
}

void wait(int device, DeviceStream stream) {
  const CurrentDevice current(device);
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for the device");
}

void wait_all(int device) {
  const CurrentDevice current(device);
  check(cudaDeviceSynchronize(), "waiting for the device");
}

bool capturing(int device, DeviceStream stream) {
  const CurrentDevice current(device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "the capture status");
  return status != cudaStreamCaptureStatusNone;
}

void order(int device, DeviceStream earlier, DeviceStream later) {
  if (capturing(device, later)) return;
  const CurrentDevice current(device);
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
  cudaError_t error = cudaEventRecord(event, static_cast<cudaStream_t>(earlier));
  if (error == cudaSuccess) {
    error = cudaStreamWaitEvent(static_cast<cudaStream_t>(later), event, 0);
  }
  cudaEventDestroy(event);  // released when the wait is over
  check(error, "ordering two streams");
}

constexpr RowOperations kRows = {.evaluate = cuda::evaluate, .step = cuda::step};

}  // namespace

extern const DeviceBackend kCudaBackend;
const DeviceBackend kCudaBackend = {
    .name = "cuda",
    .dlpack_type = kDlpackCuda,
    .device_count = device_count,
    .allocate = allocate,
    .release = release,
    .allocate_pinned = allocate_pinned,
    .release_pinned = release_pinned,
    .copy = copy,
    .clear = clear,
    .wait = wait,
    .wait_all = wait_all,
    .capturing = capturing,
    .order = order,
    .rows = &kRows,
    .pages = &cuda::kPages,
    .layers = &cuda::kLayers,
};

}  // namespace glimprouter
