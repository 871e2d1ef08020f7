// The operations on pages, in a file of their own: the files of kernels compile side by side.
#include "cuda/cuda_device.hpp"
#include "kernels/attention/operations.cuh"

namespace glimprouter::cuda {

const PageOperations kPages = device::kPageOperations<Machine>;

}  // namespace glimprouter::cuda
