#include "ops/heads_view.hpp"

#include <stdexcept>
#include <string>

namespace glimprouter {

void check_layer(const KvLayout& layout, std::int32_t layer) {
  if (layer < 0 || layer >= layout.num_layers) {
    throw std::invalid_argument("layer must lie in [0, " + std::to_string(layout.num_layers) +
                                "), got " + std::to_string(layer));
  }
}

void check_heads(const HeadsView& view, const char* what, std::int64_t tokens, std::int32_t heads,
                 std::int32_t head_dim) {
  if (view.tokens == tokens && view.heads == heads && view.head_dim == head_dim) return;
  const auto shape = [](std::int64_t t, std::int32_t h, std::int32_t d) {
    return "[" + std::to_string(t) + ", " + std::to_string(h) + ", " + std::to_string(d) + "]";
  };
  throw std::invalid_argument(std::string(what) + " must have the shape [tokens, heads, size] = " +
                              shape(tokens, heads, head_dim) + ", got " +
                              shape(view.tokens, view.heads, view.head_dim));
}

}  // namespace glimprouter
