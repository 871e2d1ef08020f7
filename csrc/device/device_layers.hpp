// Arguments of the operations between a model's matrix products on a device. Plain data: every
// pointer is device memory, elements of all tensors of a call have one type. Strides in elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "glimprouter/types/row_view.hpp"

namespace glimprouter {

inline constexpr int kRowAxes = 3;

// [shape..., size] whose last axis lies side by side.
struct LayerRows {
  const std::byte* data;
  std::int32_t shape[kRowAxes];
  std::int64_t strides[kRowAxes];

  std::int64_t count() const { return std::int64_t{shape[0]} * shape[1] * shape[2]; }
};

// How a model rounds in its norms. In the type: round(round(x scale) weight). Else in float32,
// once: round(x scale (weight + offset)).
struct NormForm {
  float epsilon = 0.0f;
  float offset = 0.0f;  // 1: the weight is stored as its difference from 1; 0 in the type
  bool in_type = false;
};

// Longer rows are refused: a thread holds its elements.
inline constexpr std::int32_t kMostNormSize = 16384;

// out = norm of source, or of sum = source + added, which is written, too.
struct NormArguments {
  LayerRows source;
  const std::byte* added;   // compact, of the source's shape; or null
  std::byte* sum;           // as `added`
  const std::byte* weight;  // [size]
  std::byte* out;           // compact, of the source's shape
  std::int32_t size;
  DataType dtype;
  NormForm form;
};

// Heads of more elements are refused.
inline constexpr std::int32_t kMostRotarySize = 512;

// Queries or keys, [batch, heads, tokens, size].
struct RotatedHeads {
  LayerRows source;
  std::byte* out;           // compact, of the source's shape
  const std::byte* weight;  // [size] of a norm that comes first; null: there is none
  NormForm form;
};

// out = x cosine + (-second half, first half of x) sine, each operation rounded to the type.
struct RotaryArguments {
  RotatedHeads queries;
  RotatedHeads keys;
  const std::byte* cosine;  // [1 or batch, tokens, size]
  const std::byte* sine;
  std::int64_t cosine_strides[2];  // of batch (0: one for all) and token
  std::int64_t sine_strides[2];
  std::int32_t size;  // even
  DataType dtype;
};

enum class Activation : std::uint8_t { kSilu, kGeluTanh };

// out = round(round(activation(gate)) up); all compact.
struct ActivationArguments {
  const std::byte* gate;
  const std::byte* up;
  std::byte* out;
  std::int64_t count;
  Activation activation;
  DataType dtype;
};

// More rows are refused: they are no longer bound by reading the weights alone.
inline constexpr std::int32_t kMostProductRows = 16;
inline constexpr int kMostMatrices = 3;

struct ProductMatrix {
  const std::byte* weight;  // [rows, size], compact, at a multiple of 16 bytes
  const std::byte* bias;    // [rows]; or null
  std::byte* out;           // [count, rows], compact
  std::int32_t rows;
};

// out = x weight^T + bias of several matrices, summed in float32 and rounded once, in bf16 or fp16.
// gated: there are two matrices of as many rows, and what is written, to the first one's, is
// round(activation(first)) second of their rounded results.
struct ProductArguments {
  const std::byte* x;  // [count, size], compact, at a multiple of 16 bytes
  std::int32_t count;  // 1 to kMostProductRows
  std::int32_t size;   // a multiple of 8
  DataType dtype;
  std::int32_t matrices;
  ProductMatrix matrix[kMostMatrices];
  bool gated;
  Activation activation;
  const std::byte*
      added;  // [count, rows], compact: is added to the first one's rounded result; or null
};

}  // namespace glimprouter
