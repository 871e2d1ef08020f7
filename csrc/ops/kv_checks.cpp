#include "ops/kv_checks.hpp"

#include <stdexcept>
#include <string>

#include "cpu/attention_task.hpp"

namespace glimprouter {
namespace {

void check_layers(const KvLayout& layout, const LayerRange& layers) {
  if (layers.first >= 0 && layers.count >= 1 && layers.first < layout.num_layers &&
      layers.count <= layout.num_layers - layers.first) {
    return;
  }
  const std::string last =
      layers.count == 1 ? "" : " (and the next, " + std::to_string(layers.count) + " in all)";
  throw std::invalid_argument("layer must lie in [0, " + std::to_string(layout.num_layers) +
                              "), got " + std::to_string(layers.first) + last);
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

}  // namespace

void check_keys_and_values(const KvLayout& layout, const LayerRange& layers, std::int64_t tokens,
                           const HeadsView& keys, const HeadsView& values) {
  check_layers(layout, layers);
  check_heads(keys, "keys", tokens, layout.num_kv_heads, layout.head_dim);
  check_heads(values, "values", tokens, layout.num_kv_heads, layout.head_dim);
}

void check_attention(const KvLayout& layout, std::int32_t layer, std::int64_t tokens,
                     const AttentionOptions& options, const HeadsView& queries,
                     const HeadsView& out) {
  check_layers(layout, {layer});
  if (layout.head_dim % kAttentionLanes != 0) {
    throw std::invalid_argument(
        "attention over pages needs a head size that is a multiple of 16, got " +
        std::to_string(layout.head_dim));
  }
  if (queries.heads < 1 || queries.heads % layout.num_kv_heads != 0) {
    throw std::invalid_argument("the number of query heads must be a multiple of the " +
                                std::to_string(layout.num_kv_heads) + " KV heads, got " +
                                std::to_string(queries.heads));
  }
  if (options.sinks.data != nullptr && options.sinks.size != queries.heads) {
    throw std::invalid_argument("sinks must have one score for each of the " +
                                std::to_string(queries.heads) + " query heads, got " +
                                std::to_string(options.sinks.size));
  }
  check_heads(queries, "queries", tokens, queries.heads, layout.head_dim);
  check_heads(out, "out", tokens, queries.heads, layout.head_dim);
}

}  // namespace glimprouter
