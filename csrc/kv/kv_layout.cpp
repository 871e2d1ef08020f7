#include "glimprouter/kv_layout.hpp"

#include <stdexcept>
#include <utility>

namespace glimprouter {
namespace {

const char* name_of(DataType dtype) {
  constexpr const char* kNames[] = {"float32", "bfloat16", "float16"};
  return kNames[static_cast<int>(dtype)];
}

}  // namespace

KvLayout KvLayout::make(std::int32_t num_layers, std::int32_t num_kv_heads, std::int32_t head_dim,
                        std::int32_t page_size, DataType dtype) {
  const std::pair<const char*, std::int32_t> sizes[] = {{"num_layers", num_layers},
                                                        {"num_kv_heads", num_kv_heads},
                                                        {"head_dim", head_dim},
                                                        {"page_size", page_size}};
  for (const auto& [name, size] : sizes) {
    if (size < 1) {
      throw std::invalid_argument(std::string(name) + " must be >= 1, got " + std::to_string(size));
    }
  }
  KvLayout layout;
  layout.dtype = dtype;
  layout.num_layers = num_layers;
  layout.num_kv_heads = num_kv_heads;
  layout.head_dim = head_dim;
  layout.page_size = page_size;
  layout.token_stride = head_dim * element_size(dtype);
  layout.head_stride = layout.token_stride * page_size;
  layout.value_offset = layout.head_stride * num_kv_heads;
  layout.layer_stride = 2 * layout.value_offset;
  const std::int64_t bytes = layout.layer_stride * num_layers;
  layout.page_bytes = (bytes + kPageUnit - 1) / kPageUnit * kPageUnit;
  return layout;
}

std::string KvLayout::describe() const {
  return std::to_string(num_layers) + " layers x " + std::to_string(num_kv_heads) + " heads x " +
         std::to_string(head_dim) + " " + name_of(dtype) + ", " + std::to_string(page_size) +
         " tokens a page of " + std::to_string(page_bytes) + " bytes, version " +
         std::to_string(version);
}

void check_same_layout(const KvLayout& expected, const KvLayout& actual, const char* what) {
  if (expected == actual) return;
  const struct {
    const char* name;
    bool equal;
  } fields[] = {{"version", expected.version == actual.version},
                {"dtype", expected.dtype == actual.dtype},
                {"num_layers", expected.num_layers == actual.num_layers},
                {"num_kv_heads", expected.num_kv_heads == actual.num_kv_heads},
                {"head_dim", expected.head_dim == actual.head_dim},
                {"page_size", expected.page_size == actual.page_size}};
  const char* different = "a stride";
  for (const auto& field : fields) {
    if (!field.equal) {
      different = field.name;
      break;
    }
  }
  throw std::invalid_argument(std::string(what) + " has another KV layout (" + different +
                              " differs): expected " + expected.describe() + "; got " +
                              actual.describe());
}

}  // namespace glimprouter
