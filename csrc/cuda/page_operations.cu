// The operations on pages, in a file of their own so that two files of kernels compile side by
// side.
#include "cuda/cuda_device.hpp"
#include "kernels/attention/operations.cuh"

namespace glimprouter::cuda {

extern const PageOperations kPages;
const PageOperations kPages = device::kPageOperations<Machine>;

}  // namespace glimprouter::cuda
