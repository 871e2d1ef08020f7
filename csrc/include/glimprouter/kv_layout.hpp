// How one model's keys and values lie in a page: an explicit descriptor, compared at every boundary
// and never inferred from a shape.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "glimprouter/types/host_device.hpp"
#include "glimprouter/types/row_view.hpp"

namespace glimprouter {

// Where a page begins, in units of KvLayout::kPageUnit bytes from the arena's start: one number for
// every layout, from which a kernel gets the address without a division. kNullPage is a page that
// padding may read and write; it belongs to nobody and is never handed out.
using PageId = std::int32_t;
inline constexpr PageId kNullPage = 0;

// What one layer keeps of a token.
struct LayerShape {
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;   // elements of a key (and of a query)
  std::int32_t value_dim = 0;  // elements of a value
  // An earlier layer whose keys and values this one reads: it keeps none itself. -1: its own.
  std::int32_t shares = -1;
  // The values are the first value_dim elements of the keys and are not kept again (the latent
  // vectors of multi-head latent attention).
  bool latent = false;

  bool operator==(const LayerShape&) const = default;
};

// Where the keys and values of one layer lie in a page: [head][token][element] each. Plain data,
// for kernels. Offsets from the page's first byte and strides in bytes.
struct LayerLayout {
  DataType dtype = DataType::kFloat32;
  std::int32_t page_size = 0;  // tokens of a page
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t value_dim = 0;
  std::int64_t key_offset = 0;
  std::int64_t key_head_stride = 0;
  std::int64_t key_token_stride = 0;
  std::int64_t value_offset = 0;
  std::int64_t value_head_stride = 0;
  std::int64_t value_token_stride = 0;

  GR_HOST_DEVICE bool latent() const { return value_offset == key_offset; }
  bool operator==(const LayerLayout&) const = default;
};

// A page holds page_size tokens of one sequence for all layers, one behind the other:
//   [layer][key, value][head][token][head element]
// so that attention walks the tokens of one head in contiguous memory. Layers differ as they like.
class KvLayout {
 public:
  static constexpr std::uint32_t kVersion = 2;
  // Pages begin at multiples of this, which also is the unit of a PageId.
  static constexpr std::int64_t kPageUnit = 256;
  // Layers begin at multiples of this, as the widest loads of a kernel do.
  static constexpr std::int64_t kLayerUnit = 16;

  KvLayout() = default;  // of no layer

  // Throws std::invalid_argument when there is no layer, a size is not positive, a layer shares one
  // that is not before it, has not its shape or shares itself, or latent values exceed the keys.
  static KvLayout make(std::span<const LayerShape> layers, std::int32_t page_size, DataType dtype);
  // So many layers of one shape.
  static KvLayout make(std::int32_t num_layers, std::int32_t num_kv_heads, std::int32_t head_dim,
                       std::int32_t page_size, DataType dtype);

  // The layout as numbers, for interfaces that take nothing else: the page size, then for each run
  // of equal layers their count, num_kv_heads, head_dim, value_dim, shares, latent.
  std::vector<std::int64_t> numbers() const;
  // Throws std::invalid_argument for numbers that do not come from numbers().
  static KvLayout of_numbers(std::span<const std::int64_t> numbers, DataType dtype);

  DataType dtype() const { return dtype_; }
  std::int32_t page_size() const { return page_size_; }
  std::int64_t page_bytes() const { return page_bytes_; }  // a multiple of kPageUnit
  std::int32_t num_layers() const { return static_cast<std::int32_t>(shapes_.size()); }
  const LayerShape& shape(std::int32_t layer) const {
    return shapes_[static_cast<std::size_t>(layer)];
  }
  // Where a layer's keys and values lie; of one that shares, where the other's do.
  const LayerLayout& layer(std::int32_t layer) const {
    return layers_[static_cast<std::size_t>(layer)];
  }

  // Layers that read the keys and values of others, ascending.
  std::vector<std::int32_t> sharing() const;
  // Layers whose values lie within their keys, likewise.
  std::vector<std::int32_t> latent() const;

  // Layers [first, first + count) as one array: bytes from each to the next, 0 where they are not
  // alike or not all their own. One layer is always an array (of any stride; 0 is given as 1).
  std::int64_t layer_stride(std::int32_t first, std::int32_t count) const;
  // The first layer behind `first` that is not in one array with it.
  std::int32_t end_of_run(std::int32_t first) const;

  // Pages that hold so many tokens.
  std::int32_t pages_for(std::int32_t tokens) const {
    return (tokens + page_size_ - 1) / page_size_;
  }

  // The same layers, whatever type and page size.
  bool same_layers(const KvLayout& other) const { return shapes_ == other.shapes_; }
  bool operator==(const KvLayout&) const = default;
  std::string describe() const;

 private:
  DataType dtype_ = DataType::kFloat32;
  std::int32_t page_size_ = 0;
  std::int64_t page_bytes_ = 0;
  std::vector<LayerShape> shapes_;
  std::vector<LayerLayout> layers_;
};

// Throws std::invalid_argument that names the first difference and both layouts.
void check_same_layout(const KvLayout& expected, const KvLayout& actual, const char* what);

}  // namespace glimprouter
