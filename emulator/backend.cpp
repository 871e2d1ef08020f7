// The emulator as a device, whose memory is the host's: for the tests of everything that
// drives a device.
#include "emulator/backend.hpp"

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "device/lost_codes.hpp"
#include "kernels/attention/operations.cuh"
#include "kernels/base/operation.cuh"
#include "kernels/layers/operations.cuh"
#include "kernels/step/launch.cuh"

namespace glimprouter::simt {
namespace {

constexpr int kDlpackCpu = 1;
std::size_t allocation_limit = ~std::size_t{0};

// Two, of one memory: models on several devices are tested with them.
int device_count(std::string*) { return 2; }

constexpr int kNone = -1;
int lost_device = kNone;
int launches_left = kNone, waits_left = kNone;  // until one loses the device

void check_device(int device, const char* what) {
  if (lost_device != device) return;
  constexpr int kIllegalAddress = 700;
  const std::string name = "simt:" + std::to_string(device);
  device::throw_if_lost(kIllegalAddress, name, std::string(what) + ": an illegal address");
}

// Counts calls of a kind that can lose the device.
void count_down(int& left, int device) {
  if (left >= 0 && left-- == 0) lost_device = device;
}

// Filled with what no correct code reads.
void* take_memory(int device, std::size_t bytes) {
  if (bytes > allocation_limit) {
    throw std::runtime_error("allocating " + std::to_string(bytes) +
                             " bytes on simt:" + std::to_string(device) +
                             ": out of memory; free device memory, or ask for "
                             "less");
  }
  void* const memory = ::operator new(bytes, std::align_val_t(256));
  std::memset(memory, 0xFF, bytes);
  return memory;
}
void* allocate(int device, std::size_t bytes) {
  check_device(device, "allocating");
  return take_memory(device, bytes);
}
void release(int, void* memory) { ::operator delete(memory, std::align_val_t(256)); }
void* allocate_pinned(std::size_t bytes) { return take_memory(0, bytes); }
void release_pinned(void* memory) { release(0, memory); }
int copies_left = -1;  // until one fails; negative: none does
void copy(int device, void* target, const void* source, std::size_t bytes, DeviceStream) {
  check_device(device, "copying");
  if (copies_left >= 0 && copies_left-- == 0) throw std::runtime_error("the copy failed");
  std::memcpy(target, source, bytes);
}
void clear(int device, void* memory, std::size_t bytes, DeviceStream) {
  check_device(device, "clearing memory");
  std::memset(memory, 0, bytes);
}
void wait_all(int device) {
  count_down(waits_left, device);
  check_device(device, "waiting for the device");
}
void wait(int device, DeviceStream) { wait_all(device); }
bool capture = false;
bool capturing(int device, DeviceStream) {
  check_device(device, "the capture status");
  return capture;
}
void order(int device, DeviceStream, DeviceStream) { check_device(device, "ordering two streams"); }

// Few processors, so that blocks share rows in several ways.
constexpr device::DeviceShape kShape{3, true};

struct Machine {
  template <typename Launcher>
  static void launch(int device, const Launcher& launcher) {
    count_down(launches_left, device);
    check_device(device, "launching a kernel");
    const device::LaunchStatus status = launcher(kShape);
    if (status != 0) throw std::runtime_error("launch failed: " + std::to_string(status));
  }
};

}  // namespace

constexpr RowOperations kRows = {
    .evaluate = device::Operation<Machine, device::launch_evaluate>::run,
    .step = device::Operation<Machine, device::launch_step>::run,
};

const DeviceBackend& backend() {
  static constexpr DeviceBackend kBackend = {
      .name = "simt",
      .dlpack_type = kDlpackCpu,
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
      .pages = &device::kPageOperations<Machine>,
      .layers = &device::kLayerOperations<Machine>,
  };
  return kBackend;
}

void pretend_capture(bool on) { capture = on; }

void fail_copy(int number) { copies_left = number; }

void lose_device_at_launch(int number) { launches_left = number; }

void lose_device_at_wait(int number) { waits_left = number; }

void find_devices() { lost_device = launches_left = waits_left = kNone; }

void limit_allocations(std::size_t bytes) { allocation_limit = bytes; }

}  // namespace glimprouter::simt
