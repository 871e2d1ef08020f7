// The operations of layers, in a file of their own: the files of kernels compile side by side.
#include "cuda/cuda_device.hpp"
#include "kernels/layers/operations.cuh"

namespace glimprouter::cuda {

const LayerOperations kLayers = device::kLayerOperations<Machine>;

}  // namespace glimprouter::cuda
