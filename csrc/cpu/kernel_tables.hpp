// The kernel tables that the instruction-set files define.
#pragma once

#include "cpu/cpu_backend.hpp"

namespace glimprouter {

extern const CpuKernels kGenericKernels;
#if defined(__x86_64__)
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;
#elif defined(__aarch64__)
extern const CpuKernels kNeonKernels;
#endif

}  // namespace glimprouter
