// The activation of a gate times what it lets through, rounded where a framework would store.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/device.cuh"
#include "kernels/layers/elements.cuh"

namespace glimprouter::device {

inline constexpr std::uint32_t kActivationThreads = 128;

GR_DEVICE float activated(float x, Activation activation) {
  if (activation == Activation::kSilu) return x / (1.0f + exponential(-x));
  constexpr float kBeta = 0.7978845608028654f;  // sqrt(2 / pi)
  constexpr float kKappa = 0.044715f;
  const float inner = kBeta * (x + kKappa * (x * x * x));
  return 0.5f * x * (1.0f + hyperbolic_tangent(inner));
}

// Both come as they are stored.
template <DataType kType>
GR_DEVICE float gated(float gate, float up, Activation activation) {
  return rounded<kType>(activated(gate, activation)) * up;
}

// grid: pieces of eight by kActivationThreads.
template <DataType kType>
GR_KERNEL(kActivationThreads)
void activation_kernel(const ActivationArguments arguments, const bool vectors) {
  launch_dependents();
  wait_for_dependencies();
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kActivationThreads + threadIdx.x) * kPieceElements;
  float gate[kPieceElements];
  float up[kPieceElements];
  const bool whole = vectors && first + kPieceElements <= arguments.count;
  read_eight<kType>(arguments.gate, first, arguments.count, whole, gate);
  read_eight<kType>(arguments.up, first, arguments.count, whole, up);
  GR_UNROLL
  for (std::int32_t i = 0; i < kPieceElements; ++i) {
    gate[i] = gated<kType>(gate[i], up[i], arguments.activation);
  }
  write_eight<kType>(arguments.out, first, arguments.count, whole, gate);
}

}  // namespace glimprouter::device
