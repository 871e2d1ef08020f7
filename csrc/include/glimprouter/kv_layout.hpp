// How one model's keys and values lie in a page: an explicit descriptor, compared at every boundary
// and never inferred from a shape.
#pragma once

#include <cstdint>
#include <string>

#include "glimprouter/types/row_view.hpp"

namespace glimprouter {

// Where a page begins, in units of KvLayout::kPageUnit bytes from the arena's start: one number for
// every layout, from which a kernel gets the address without a division. kNullPage is a page that
// padding may read and write; it belongs to nobody and is never handed out.
using PageId = std::int32_t;
inline constexpr PageId kNullPage = 0;

// A page holds page_size tokens of one sequence for all layers:
//   [layer][key, value][head][token][head element]
// so that attention walks the tokens of one head in contiguous memory. Strides in bytes.
struct KvLayout {
  static constexpr std::uint32_t kVersion = 1;
  // Pages begin at multiples of this, which also is the unit of a PageId.
  static constexpr std::int64_t kPageUnit = 256;

  std::uint32_t version = kVersion;
  DataType dtype = DataType::kFloat32;
  std::int32_t num_layers = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;   // elements
  std::int32_t page_size = 0;  // tokens of a page
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t value_offset = 0;  // of a layer's values behind its keys
  std::int64_t layer_stride = 0;
  std::int64_t page_bytes = 0;  // a multiple of kPageUnit

  // Throws std::invalid_argument when a size is not positive.
  static KvLayout make(std::int32_t num_layers, std::int32_t num_kv_heads, std::int32_t head_dim,
                       std::int32_t page_size, DataType dtype);

  // Pages that hold so many tokens.
  std::int32_t pages_for(std::int32_t tokens) const { return (tokens + page_size - 1) / page_size; }

  bool operator==(const KvLayout&) const = default;
  std::string describe() const;
};

// Throws std::invalid_argument that names the first difference and both layouts.
void check_same_layout(const KvLayout& expected, const KvLayout& actual, const char* what);

}  // namespace glimprouter
