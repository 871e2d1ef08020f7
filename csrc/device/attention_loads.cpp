#include "device/attention_loads.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace glimprouter {
namespace {

AttentionLoads loads_of(std::string_view name) {
  for (const AttentionLoads loads : {AttentionLoads::kDirect, AttentionLoads::kStaged}) {
    if (name == name_of(loads)) return loads;
  }
  throw std::invalid_argument("unknown loads of attention \"" + std::string(name) +
                              "\": GLIMPROUTER_ATTENTION_LOADS takes one of direct, staged");
}

std::atomic<AttentionLoads>& wanted() {
  static std::atomic<AttentionLoads> loads = [] {
    const char* const named = std::getenv("GLIMPROUTER_ATTENTION_LOADS");
    return named != nullptr && *named != '\0' ? loads_of(named) : AttentionLoads::kDirect;
  }();
  return loads;
}

}  // namespace

AttentionLoads attention_loads() { return wanted(); }

std::string_view name_of(AttentionLoads loads) {
  return loads == AttentionLoads::kDirect ? "direct" : "staged";
}

void set_attention_loads(std::string_view name) { wanted() = loads_of(name); }

}  // namespace glimprouter
