// The memory of a machine by its name: where a page pool may live.
#pragma once

#include <string_view>

#include "glimprouter/types/arena.hpp"
#include "glimprouter/types/device_lost.hpp"

namespace glimprouter {

// Makes arenas on the "cpu", or on a device by its name, such as "cuda:0" ("cuda" is the first).
// Throws std::invalid_argument for a name that this build does not know, std::runtime_error when
// there is no such device.
ArenaFactory arena_on(std::string_view place);

}  // namespace glimprouter
