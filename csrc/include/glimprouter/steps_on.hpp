// The device of a router by its name: where logits live and steps run.
#pragma once

#include <string_view>

#include "glimprouter/step_router.hpp"
#include "glimprouter/types/device_lost.hpp"

namespace glimprouter {

// For "cpu", or a device by its name, such as "cuda:0" ("cuda" is the first). Throws
// std::invalid_argument for a name that this build does not know, std::runtime_error when there is
// no such device.
StepDeviceFactory steps_on(std::string_view place);

}  // namespace glimprouter
