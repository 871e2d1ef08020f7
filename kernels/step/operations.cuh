// The operations on rows of logits, for the table of a device.
#pragma once

#include "kernels/base/operation.cuh"
#include "kernels/step/launch.cuh"

namespace glimprouter::device {

template <typename Machine>
inline constexpr RowOperations kRowOperations = {
    .evaluate = Operation<Machine, launch_evaluate>::run,
    .step = Operation<Machine, launch_step>::run,
};

}  // namespace glimprouter::device
