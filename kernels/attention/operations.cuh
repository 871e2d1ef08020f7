// The operations on pages, for the table of a device.
#pragma once

#include "kernels/attention/launch.cuh"
#include "kernels/base/operation.cuh"
#include "kernels/kv/launch.cuh"

namespace glimprouter::device {

template <typename Machine>
inline constexpr PageOperations kPageOperations = {
    .append = Operation<Machine, launch_append>::run,
    .gather = Operation<Machine, launch_gather>::run,
    .cast_copy = Operation<Machine, launch_cast_copy>::run,
    .copy_pages = Operation<Machine, launch_page_copy>::run,
    .attend = Operation<Machine, launch_attention>::run,
};

}  // namespace glimprouter::device
