// Elements of one type as another.
#pragma once

#include <cstdint>

#include "glimprouter/types/row_view.hpp"

namespace glimprouter {

// Casts `count` elements side by side, rounding to nearest, ties to even; a copy where the types
// are the same. Bitwise the same on every instruction set. The two do not overlap; any alignment.
void cast_elements(const void* source, DataType source_type, void* target, DataType target_type,
                   std::int64_t count);

}  // namespace glimprouter
