// The order in which a device works.
#pragma once

namespace glimprouter {

// A cudaStream_t without its header; null is the default stream. Host memory has none.
using DeviceStream = void*;

}  // namespace glimprouter
