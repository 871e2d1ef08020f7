// The host SIMT shim as a device, whose memory is the host's: for the tests of everything that
// drives a device.
#include "emulator/backend.hpp"

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "kernels/attention/launch.cuh"
#include "kernels/kv/launch.cuh"
#include "kernels/row/launch.cuh"

namespace glimprouter::simt {
namespace {

constexpr int kDlpackCpu = 1;
std::size_t allocation_limit = ~std::size_t{0};

int device_count(std::string*) { return 1; }

// Filled with what no correct code reads.
void* allocate(int, std::size_t bytes) {
  if (bytes > allocation_limit) {
    throw std::runtime_error("allocating " + std::to_string(bytes) +
                             " bytes on simt:0: out of memory; free device memory, or ask for "
                             "less");
  }
  void* const memory = ::operator new(bytes, std::align_val_t(256));
  std::memset(memory, 0xFF, bytes);
  return memory;
}
void release(int, void* memory) { ::operator delete(memory, std::align_val_t(256)); }
void* allocate_pinned(std::size_t bytes) { return allocate(0, bytes); }
void release_pinned(void* memory) { release(0, memory); }
int copies_left = -1;  // until one fails; negative: none does
void copy(int, void* target, const void* source, std::size_t bytes, DeviceStream) {
  if (copies_left >= 0 && copies_left-- == 0) throw std::runtime_error("the copy failed");
  std::memcpy(target, source, bytes);
}
void clear(int, void* memory, std::size_t bytes, DeviceStream) { std::memset(memory, 0, bytes); }
void wait(int, DeviceStream) {}
void wait_all(int) {}
bool capture = false;
bool capturing(int, DeviceStream) { return capture; }
void order(int, DeviceStream, DeviceStream) {}

// Few processors, so that blocks share rows in several ways.
constexpr device::DeviceShape kShape{3, true};

void check(device::LaunchStatus status) {
  if (status != 0) throw std::runtime_error("launch failed: " + std::to_string(status));
}
void evaluate(int, const EvaluateArguments& arguments, DeviceStream stream) {
  check(device::launch_evaluate(arguments, kShape, stream));
}
void step(int, const StepArguments& arguments, DeviceStream stream) {
  check(device::launch_step(arguments, kShape, stream));
}

void append(int, const AppendArguments& arguments, DeviceStream stream) {
  check(device::launch_append(arguments, kShape, stream));
}
void gather(int, const GatherArguments& arguments, DeviceStream stream) {
  check(device::launch_gather(arguments, kShape, stream));
}
void cast_copy(int, const CastCopyArguments& arguments, DeviceStream stream) {
  check(device::launch_cast_copy(arguments, kShape, stream));
}
void copy_pages(int, const PageCopyArguments& arguments, DeviceStream stream) {
  check(device::launch_page_copy(arguments, kShape, stream));
}
void pack_handoff(int, const HandoffArguments& arguments, DeviceStream stream) {
  check(device::launch_handoff(arguments, kShape, stream));
}
void attend(int, const AttentionArguments& arguments, DeviceStream stream) {
  check(device::launch_attention(arguments, kShape, stream));
}

}  // namespace

const DeviceBackend& backend() {
  static constexpr DeviceBackend kBackend = {
      "simt", kDlpackCpu, device_count, allocate,  release,    allocate_pinned, release_pinned,
      copy,   clear,      wait,         wait_all,  capturing,  order,           evaluate,
      step,   append,     gather,       cast_copy, copy_pages, pack_handoff,    attend,
  };
  return kBackend;
}

void pretend_capture(bool on) { capture = on; }

void fail_copy(int number) { copies_left = number; }

void limit_allocations(std::size_t bytes) { allocation_limit = bytes; }

}  // namespace glimprouter::simt
