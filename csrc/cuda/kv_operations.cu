// Launches of the operations on pages.
#include "cuda/cuda_device.hpp"
#include "cuda/kv_operations.hpp"
#include "kernels/attention/launch.cuh"
#include "kernels/kv/launch.cuh"

namespace glimprouter::cuda {

void append(int device, const AppendArguments& arguments, DeviceStream stream) {
  const CurrentDevice current(device);
  check_launch(glimprouter::device::launch_append(arguments, shape_of(device), stream),
               "launching append");
}

void gather(int device, const GatherArguments& arguments, DeviceStream stream) {
  const CurrentDevice current(device);
  check_launch(glimprouter::device::launch_gather(arguments, shape_of(device), stream),
               "launching gather");
}

void cast_copy(int device, const CastCopyArguments& arguments, DeviceStream stream) {
  const CurrentDevice current(device);
  check_launch(glimprouter::device::launch_cast_copy(arguments, shape_of(device), stream),
               "launching the cast-copy");
}

void copy_pages(int device, const PageCopyArguments& arguments, DeviceStream stream) {
  const CurrentDevice current(device);
  check_launch(glimprouter::device::launch_page_copy(arguments, shape_of(device), stream),
               "launching the copy of pages");
}

void pack_handoff(int device, const HandoffArguments& arguments, DeviceStream stream) {
  const CurrentDevice current(device);
  check_launch(glimprouter::device::launch_handoff(arguments, shape_of(device), stream),
               "launching the hand-off");
}

void attend(int device, const AttentionArguments& arguments, DeviceStream stream) {
  const CurrentDevice current(device);
  check_launch(glimprouter::device::launch_attention(arguments, shape_of(device), stream),
               "launching attention over pages");
}

}  // namespace glimprouter::cuda
