// The fused kernel as one more instruction set of the row operation.
#pragma once

#include "cpu/cpu_backend.hpp"

namespace glimprouter::simt {

const CpuKernels& row_backend();

}  // namespace glimprouter::simt
