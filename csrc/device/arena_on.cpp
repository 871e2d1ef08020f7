#include "glimprouter/arena_on.hpp"

#include "device/device_arena.hpp"
#include "ops/host_arena.hpp"

namespace glimprouter {

ArenaFactory arena_on(std::string_view place) {
  return place == "cpu" ? host_arena() : device_arena(find_device(place));
}

}  // namespace glimprouter
