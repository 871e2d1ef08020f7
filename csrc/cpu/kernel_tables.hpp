// The kernel tables that the instruction-set files define.
#pragma once

#include "glimprouter/cpu_backend.hpp"

namespace glimprouter {

extern const RowKernels kGenericKernels;
#if defined(__x86_64__)
extern const RowKernels kAvx2Kernels;
extern const RowKernels kAvx512Kernels;
#elif defined(__aarch64__)
extern const RowKernels kNeonKernels;
#endif

}  // namespace glimprouter
