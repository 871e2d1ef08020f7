#include "glimprouter/kv_layout.hpp"

#include <cstddef>
#include <limits>
#include <stdexcept>
#include <utility>

namespace glimprouter {
namespace {

const char* name_of(DataType dtype) {
  constexpr const char* kNames[] = {"float32", "bfloat16", "float16"};
  return kNames[static_cast<int>(dtype)];
}

constexpr std::size_t kRunNumbers = 6;

std::int64_t round_up(std::int64_t bytes, std::int64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

void check_size(const char* name, std::int32_t size) {
  if (size >= 1) return;
  throw std::invalid_argument(std::string(name) + " must be >= 1, got " + std::to_string(size));
}

void check_shape(std::span<const LayerShape> layers, std::size_t index) {
  const LayerShape& shape = layers[index];
  check_size("num_kv_heads", shape.num_kv_heads);
  check_size("head_dim", shape.head_dim);
  check_size("value_dim", shape.value_dim);
  const std::string name = "layer " + std::to_string(index);
  if (shape.latent && shape.value_dim > shape.head_dim) {
    throw std::invalid_argument(name + " has latent values of " + std::to_string(shape.value_dim) +
                                " elements, more than its keys of " +
                                std::to_string(shape.head_dim));
  }
  if (shape.shares == -1) return;
  if (shape.shares < 0 || static_cast<std::size_t>(shape.shares) >= index ||
      layers[static_cast<std::size_t>(shape.shares)].shares != -1) {
    throw std::invalid_argument(name +
                                " must share an earlier layer that has keys of its own, or "
                                "none (-1), got " +
                                std::to_string(shape.shares));
  }
  LayerShape other = layers[static_cast<std::size_t>(shape.shares)];
  other.shares = shape.shares;
  if (other == shape) return;
  throw std::invalid_argument(name + " must have the heads and sizes of layer " +
                              std::to_string(shape.shares) + ", which it shares");
}

// The layer's place in a page, from `begin` on; moves `begin` behind it.
LayerLayout place(const LayerShape& shape, std::int32_t page_size, DataType dtype,
                  std::int64_t* begin) {
  LayerLayout layer;
  layer.dtype = dtype;
  layer.page_size = page_size;
  layer.num_kv_heads = shape.num_kv_heads;
  layer.head_dim = shape.head_dim;
  layer.value_dim = shape.value_dim;
  layer.key_offset = *begin;
  layer.key_token_stride = shape.head_dim * element_size(dtype);
  layer.key_head_stride = layer.key_token_stride * page_size;
  std::int64_t end = *begin + layer.key_head_stride * shape.num_kv_heads;
  if (shape.latent) {
    layer.value_offset = layer.key_offset;
    layer.value_token_stride = layer.key_token_stride;
    layer.value_head_stride = layer.key_head_stride;
  } else {
    layer.value_offset = end;
    layer.value_token_stride = shape.value_dim * element_size(dtype);
    layer.value_head_stride = layer.value_token_stride * page_size;
    end += layer.value_head_stride * shape.num_kv_heads;
  }
  *begin = round_up(end, KvLayout::kLayerUnit);
  return layer;
}

std::string describe(const LayerShape& shape) {
  std::string text =
      std::to_string(shape.num_kv_heads) + " heads x " + std::to_string(shape.head_dim);
  if (shape.latent) {
    text += " (values: the first " + std::to_string(shape.value_dim) + ")";
  } else if (shape.value_dim != shape.head_dim) {
    text += " and " + std::to_string(shape.value_dim);
  }
  return shape.shares < 0 ? text : text + " of layer " + std::to_string(shape.shares);
}

// Equal layers in a row.
struct Run {
  std::size_t first;
  std::size_t count;
};

std::vector<Run> runs_of(const std::vector<LayerShape>& shapes) {
  std::vector<Run> runs;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    if (i > 0 && shapes[i] == shapes[i - 1]) {
      ++runs.back().count;
    } else {
      runs.push_back({i, 1});
    }
  }
  return runs;
}

const char* first_difference(const KvLayout& a, const KvLayout& b) {
  if (a.dtype() != b.dtype()) return "dtype";
  if (a.num_layers() != b.num_layers()) return "num_layers";
  for (std::int32_t layer = 0; layer < a.num_layers(); ++layer) {
    const LayerShape& own = a.shape(layer);
    const LayerShape& other = b.shape(layer);
    if (own.num_kv_heads != other.num_kv_heads) return "num_kv_heads";
    if (own.head_dim != other.head_dim) return "head_dim";
    if (own.value_dim != other.value_dim) return "value_dim";
    if (own != other) return "what a layer shares";
  }
  return "page_size";
}

}  // namespace

KvLayout KvLayout::make(std::span<const LayerShape> layers, std::int32_t page_size,
                        DataType dtype) {
  if (layers.empty()) throw std::invalid_argument("a KV layout needs a layer");
  check_size("page_size", page_size);
  KvLayout layout;
  layout.dtype_ = dtype;
  layout.page_size_ = page_size;
  layout.shapes_.assign(layers.begin(), layers.end());
  layout.layers_.reserve(layers.size());
  std::int64_t end = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    check_shape(layers, i);
    layout.layers_.push_back(layers[i].shares < 0 ? place(layers[i], page_size, dtype, &end)
                                                  : layout.layer(layers[i].shares));
  }
  layout.page_bytes_ = round_up(end, kPageUnit);
  return layout;
}

KvLayout KvLayout::make(std::int32_t num_layers, std::int32_t num_kv_heads, std::int32_t head_dim,
                        std::int32_t page_size, DataType dtype) {
  check_size("num_layers", num_layers);
  const std::vector<LayerShape> layers(static_cast<std::size_t>(num_layers),
                                       LayerShape{num_kv_heads, head_dim, head_dim});
  return make(layers, page_size, dtype);
}

std::vector<std::int64_t> KvLayout::numbers() const {
  std::vector<std::int64_t> result{page_size_};
  for (const Run& run : runs_of(shapes_)) {
    const LayerShape& shape = shapes_[run.first];
    result.insert(result.end(), {static_cast<std::int64_t>(run.count), shape.num_kv_heads,
                                 shape.head_dim, shape.value_dim, shape.shares, shape.latent});
  }
  return result;
}

KvLayout KvLayout::of_numbers(std::span<const std::int64_t> numbers, DataType dtype) {
  constexpr std::int64_t kMostLayers = 1 << 20;
  bool sound = numbers.size() > kRunNumbers && (numbers.size() - 1) % kRunNumbers == 0;
  for (const std::int64_t number : numbers) {
    sound = sound && number >= -1 && number <= std::numeric_limits<std::int32_t>::max();
  }
  std::vector<LayerShape> layers;
  for (std::size_t at = 1; sound && at < numbers.size(); at += kRunNumbers) {
    const auto number = [&numbers, at](std::size_t i) {
      return static_cast<std::int32_t>(numbers[at + i]);
    };
    const auto have = static_cast<std::int64_t>(layers.size());
    sound = number(0) >= 1 && have + number(0) <= kMostLayers && (number(5) == 0 || number(5) == 1);
    if (!sound) break;
    layers.resize(layers.size() + static_cast<std::size_t>(number(0)),
                  {number(1), number(2), number(3), number(4), number(5) == 1});
  }
  if (!sound) throw std::invalid_argument("these numbers are no KV layout (see KvLayout.numbers)");
  return make(layers, static_cast<std::int32_t>(numbers[0]), dtype);
}

std::vector<std::int32_t> KvLayout::sharing() const {
  std::vector<std::int32_t> result;
  for (std::int32_t layer = 0; layer < num_layers(); ++layer) {
    if (shape(layer).shares >= 0) result.push_back(layer);
  }
  return result;
}

std::vector<std::int32_t> KvLayout::latent() const {
  std::vector<std::int32_t> result;
  for (std::int32_t layer = 0; layer < num_layers(); ++layer) {
    if (shape(layer).latent) result.push_back(layer);
  }
  return result;
}

std::int64_t KvLayout::layer_stride(std::int32_t first, std::int32_t count) const {
  if (count == 1) return 1;
  const std::int64_t stride = layer(first + 1).key_offset - layer(first).key_offset;
  LayerShape own = shape(first);
  if (own.shares >= 0) return 0;
  for (std::int32_t i = first + 1; i < first + count; ++i) {
    if (shape(i) != own || layer(i).key_offset - layer(i - 1).key_offset != stride) return 0;
  }
  return stride;
}

std::int32_t KvLayout::end_of_run(std::int32_t first) const {
  std::int32_t count = 1;
  while (first + count < num_layers() && layer_stride(first, count + 1) != 0) ++count;
  return first + count;
}

std::string KvLayout::describe() const {
  std::string layers;
  for (const Run& run : runs_of(shapes_)) {
    layers += (run.first > 0 ? " + " : "") + std::to_string(run.count) + " layers x " +
              glimprouter::describe(shapes_[run.first]);
  }
  return layers + " " + name_of(dtype_) + ", " + std::to_string(page_size_) + " tokens a page of " +
         std::to_string(page_bytes_) + " bytes, version " + std::to_string(kVersion);
}

void check_same_layout(const KvLayout& expected, const KvLayout& actual, const char* what) {
  if (expected == actual) return;
  const char* different = first_difference(expected, actual);
  throw std::invalid_argument(std::string(what) + " has another KV layout (" + different +
                              " differs): expected " + expected.describe() + "; got " +
                              actual.describe());
}

}  // namespace glimprouter
