// What stands between the matrix products of a model's layers: norms and rotary embeddings, each in
// one pass over float32 tensors on the CPU. For a single token the arithmetic is next to nothing
// and the number of operations is what costs: torch takes six for a norm.
//
// Plain C++ for every processor, not one body an instruction set: a row is some KB, read from
// memory once. Each row is computed alone, in one order of operations, so it has the same bits in
// any batch, on any processor and any number of threads. The library's threads share the rows.
#pragma once

#include <cstdint>

namespace glimprouter {

inline constexpr int kLayerAxes = 4;

// A tensor of up to four axes; the missing ones stand in front with a size of 1. Strides in
// elements. Non-owning.
struct FloatTensor {
  const float* data;
  std::int64_t shape[kLayerAxes];
  std::int64_t strides[kLayerAxes];
};

struct RmsNorm {
  const float* weight;  // [size], side by side
  double epsilon = 0.0;
  float offset = 0.0f;  // 1: the weight is stored as its difference from 1 (Gemma)
};

// out = (source / sqrt(mean(source^2) + epsilon)) (weight + offset), over the last axis. The mean
// is summed in double. out: contiguous, of the source's shape; the two do not overlap.
void rms_norm(const FloatTensor& source, const RmsNorm& norm, float* out);

// out = source cosine + (-second half, first half of source) sine: each head of [B, H, T, D] turned
// by its token's angles, [1 or B, T, D]; D is even. Bitwise what torch makes of that expression.
// out: contiguous, of the source's shape; they do not overlap.
// Throws std::invalid_argument for other shapes.
void rotate_heads(const FloatTensor& source, const FloatTensor& cosine, const FloatTensor& sine,
                  float* out);

}  // namespace glimprouter
