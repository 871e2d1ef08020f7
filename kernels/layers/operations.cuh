// The operations of layers, for the table of a device.
#pragma once

#include "kernels/base/operation.cuh"
#include "kernels/layers/launch.cuh"

namespace glimprouter::device {

template <typename Machine>
inline constexpr LayerOperations kLayerOperations = {
    .norm = Operation<Machine, launch_norm>::run,
    .rotate = Operation<Machine, launch_rotary>::run,
    .activate = Operation<Machine, launch_activation>::run,
    .multiply = Operation<Machine, launch_product>::run,
};

}  // namespace glimprouter::device
