// How the operations on pages are launched.
#pragma once

#include <cstdint>

#include "device/device_kv.hpp"
#include "kernels/base/launch.cuh"
#include "kernels/kv/pages.cuh"

namespace glimprouter::device {

inline constexpr std::int64_t kMaxGridX = 0x7FFFFFFF;
inline constexpr unsigned kMaxGridY = 65535;  // and z
// Blocks that keep a processor busy with copies.
inline constexpr std::int64_t kCopyBlocksPerProcessor = 16;

// Blocks along x: all the work, as long as the grid does not exceed what the device runs at once.
inline unsigned copy_blocks(std::int64_t items, std::int64_t lines, int processors) {
  const std::int64_t needed = (items + kCopyThreads - 1) / kCopyThreads;
  const std::int64_t together = kCopyBlocksPerProcessor * processors / lines;
  const std::int64_t most = together < 1 ? 1 : together;
  return static_cast<unsigned>(needed < most ? needed : most);
}

// Nothing for no tokens. 2^32 pieces of a head, or 65535 heads of all layers, are too many.
template <typename Job>
LaunchStatus launch_head_copy(const Job& job, std::int64_t tokens, std::int32_t layers,
                              const LayerLayout& layer, const DeviceShape& device, Stream stream) {
  const std::int64_t lines = std::int64_t{job.parts()} * layers * layer.num_kv_heads;
  const std::int32_t longest = layer.head_dim > layer.value_dim ? layer.head_dim : layer.value_dim;
  const std::int64_t items = tokens * ((longest + kPieceElements - 1) / kPieceElements);
  if (items == 0 || lines == 0) return 0;
  if (lines > kMaxGridY || items > 0xFFFFFFFFll) return kInvalidConfiguration;
  LaunchShape shape = shape_on(device, stream);
  shape.grid.x = copy_blocks(items, lines, device.processors);
  shape.grid.y = static_cast<unsigned>(lines);
  shape.block = kCopyThreads;
  return launch(&head_copy_kernel<Job>, shape, job);
}

inline LaunchStatus launch_append(const AppendArguments& arguments, const DeviceShape& device,
                                  Stream stream) {
  return launch_head_copy(AppendJob{arguments}, arguments.tokens, arguments.layers,
                          arguments.pages.layer, device, stream);
}

inline LaunchStatus launch_gather(const GatherArguments& arguments, const DeviceShape& device,
                                  Stream stream) {
  return launch_head_copy(GatherJob{arguments}, arguments.tokens, arguments.layers,
                          arguments.pages.layer, device, stream);
}

inline LaunchStatus launch_cast_copy(const CastCopyArguments& arguments, const DeviceShape& device,
                                     Stream stream) {
  return launch_head_copy(CastCopyJob{arguments}, arguments.end - arguments.begin, arguments.layers,
                          arguments.source.layer, device, stream);
}

inline LaunchStatus launch_page_copy(const PageCopyArguments& arguments, const DeviceShape& device,
                                     Stream stream) {
  if (arguments.count == 0) return 0;
  LaunchShape shape = shape_on(device, stream);
  shape.grid.y = arguments.count < kMaxGridY ? static_cast<unsigned>(arguments.count) : kMaxGridY;
  shape.grid.x =
      copy_blocks(arguments.page_bytes / 16 / kVectorsTogether, shape.grid.y, device.processors);
  if (shape.grid.x == 0) shape.grid.x = 1;
  shape.block = kCopyThreads;
  return launch(&page_copy_kernel<PageCopyArguments>, shape, arguments);
}

}  // namespace glimprouter::device
