// Which way attention on a device brings keys and values to a processor, of this process. Internal.
#pragma once

#include <string_view>

#include "device/device_kv.hpp"

namespace glimprouter {

// What launches from now on ask for: what GLIMPROUTER_ATTENTION_LOADS names, else kDirect. kStaged
// has not been measured yet. Throws std::invalid_argument at the first call for an unknown name.
AttentionLoads attention_loads();
// "direct" or "staged".
std::string_view name_of(AttentionLoads loads);
// Changes it, to compare; graphs keep what they were captured with. Throws as above.
void set_attention_loads(std::string_view name);

}  // namespace glimprouter
