#include "ops/kv_checks.hpp"

#include <stdexcept>
#include <string>

#include "cpu/attention_task.hpp"

namespace glimprouter {
namespace {

void check_layers(const KvLayout& layout, const LayerRange& layers) {
  const std::int32_t all = layout.num_layers();
  if (layers.first < 0 || layers.count < 1 || layers.first >= all ||
      layers.count > all - layers.first) {
    const std::string last =
        layers.count == 1 ? "" : " (and the next, " + std::to_string(layers.count) + " in all)";
    throw std::invalid_argument("layer must lie in [0, " + std::to_string(all) + "), got " +
                                std::to_string(layers.first) + last);
  }
  if (layout.layer_stride(layers.first, layers.count) != 0) return;
  throw std::invalid_argument(
      "one tensor holds only layers of one shape that keep keys of their own; go layer by layer: " +
      layout.describe());
}

void check_heads(const HeadsView& view, const char* what, std::int64_t tokens, std::int32_t heads,
                 std::int32_t head_dim) {
  if (view.tokens == tokens && view.heads == heads && view.head_dim == head_dim) return;
  const auto shape = [](std::int64_t t, std::int32_t h, std::int32_t d) {
    return "[" + std::to_string(t) + ", " + std::to_string(h) + ", " + std::to_string(d) + "]";
  };
  throw std::invalid_argument(
      std::string(what) +
      " must have the shape [tokens, heads, size] = " + shape(tokens, heads, head_dim) + ", got " +
      (view.absent() ? "none" : shape(view.tokens, view.heads, view.head_dim)));
}

}  // namespace

void check_keys_and_values(const KvLayout& layout, const LayerRange& layers, std::int64_t tokens,
                           const HeadsView& keys, const HeadsView& values) {
  check_layers(layout, layers);
  const LayerShape& shape = layout.shape(layers.first);
  check_heads(keys, "keys", tokens, shape.num_kv_heads, shape.head_dim);
  if (shape.latent && values.absent()) return;
  check_heads(values, "values", tokens, shape.num_kv_heads, shape.value_dim);
}

void check_written(const KvLayout& layout, const LayerRange& layers, std::int64_t tokens,
                   const HeadsView& keys, const HeadsView& values) {
  check_keys_and_values(layout, layers, tokens, keys, values);
  const LayerShape& shape = layout.shape(layers.first);
  const std::string name = "layer " + std::to_string(layers.first);
  if (shape.shares >= 0) {
    throw std::invalid_argument(name + " has no keys of its own: it reads those of layer " +
                                std::to_string(shape.shares));
  }
  if (shape.latent && !values.absent()) {
    throw std::invalid_argument(name + " keeps its values within its keys; pass none");
  }
}

void check_query_heads(const KvLayout& layout, std::int32_t heads) {
  for (std::int32_t layer = 0; layer < layout.num_layers(); ++layer) {
    const std::int32_t own = layout.shape(layer).num_kv_heads;
    if (heads >= 1 && heads % own == 0) continue;
    throw std::invalid_argument("heads must be a multiple of the " + std::to_string(own) +
                                " KV heads, got " + std::to_string(heads));
  }
}

void check_attention(const KvLayout& layout, std::int32_t layer, std::int64_t tokens,
                     const AttentionOptions& options, const HeadsView& queries,
                     const HeadsView& out) {
  check_layers(layout, {layer});
  const LayerShape& shape = layout.shape(layer);
  for (const std::int32_t size : {shape.head_dim, shape.value_dim}) {
    if (size % kAttentionLanes == 0) continue;
    throw std::invalid_argument(
        "attention over pages needs a head size that is a multiple of 16, got " +
        std::to_string(size));
  }
  if (queries.heads < 1 || queries.heads % shape.num_kv_heads != 0) {
    throw std::invalid_argument("the number of query heads must be a multiple of the " +
                                std::to_string(shape.num_kv_heads) + " KV heads, got " +
                                std::to_string(queries.heads));
  }
  if (options.sinks.data != nullptr && options.sinks.size != queries.heads) {
    throw std::invalid_argument("sinks must have one score for each of the " +
                                std::to_string(queries.heads) + " query heads, got " +
                                std::to_string(options.sinks.size));
  }
  check_heads(queries, "queries", tokens, queries.heads, shape.head_dim);
  check_heads(out, "out", tokens, queries.heads, shape.value_dim);
}

}  // namespace glimprouter
