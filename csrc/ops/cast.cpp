#include "ops/cast.hpp"

#include <cstddef>
#include <cstring>

#include "cpu/cpu_backend.hpp"

namespace glimprouter {

void cast_elements(const void* source, DataType source_type, void* target, DataType target_type,
                   std::int64_t count) {
  if (source_type == target_type) {
    std::memcpy(target, source, static_cast<std::size_t>(count * element_size(source_type)));
    return;
  }
  active_backend().cast(static_cast<const std::byte*>(source), source_type,
                        static_cast<std::byte*>(target), target_type, count);
}

}  // namespace glimprouter
