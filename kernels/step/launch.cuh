// How the fused row operation is launched: one kernel for any number of rows.
#pragma once

#include <cstdint>

#include "device/device_rows.hpp"
#include "kernels/base/launch.cuh"
#include "kernels/step/jobs.cuh"

namespace glimprouter::device {

// Blocks a row: as many as run at the same time over all rows, at most one a tile. The results do
// not depend on it.
template <typename Job>
unsigned blocks_a_row(std::int64_t rows, std::int64_t vocabulary, int processors) {
  const std::int64_t tiles = tiles_of(vocabulary);
  const std::int64_t wanted = std::int64_t{Job::kBlocksPerProcessor} * processors / rows;
  return static_cast<unsigned>(wanted < 1 ? 1 : wanted > tiles ? tiles : wanted);
}

template <typename Job, typename Arguments>
LaunchStatus launch_rows(const Arguments& arguments, const DeviceShape& device, Stream stream) {
  if (arguments.logits.rows == 0) return 0;
  LaunchShape shape = shape_on(device, stream);
  shape.grid.x =
      blocks_a_row<Job>(arguments.logits.rows, arguments.logits.width, device.processors);
  shape.grid.y = static_cast<unsigned>(arguments.logits.rows);
  shape.block = kBlockThreads;
  return launch(&row_kernel<Job>, shape, Job{arguments});
}

// At most 65,535 rows.
inline LaunchStatus launch_evaluate(const EvaluateArguments& arguments, const DeviceShape& device,
                                    Stream stream) {
  return launch_rows<EvaluateJob>(arguments, device, stream);
}

inline LaunchStatus launch_step(const StepArguments& arguments, const DeviceShape& device,
                                Stream stream) {
  if (arguments.kind != RowsOf::kStep) return launch_rows<DraftJob>(arguments, device, stream);
  return launch_rows<StepJob>(arguments, device, stream);
}

}  // namespace glimprouter::device
