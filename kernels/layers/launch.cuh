// How the operations of layers are launched.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "device/device_layers.hpp"
#include "kernels/base/launch.cuh"
#include "kernels/layers/activation.cuh"
#include "kernels/layers/norm.cuh"
#include "kernels/layers/product.cuh"
#include "kernels/layers/rotary.cuh"

namespace glimprouter::device {

inline constexpr std::int64_t kMostRows = 0x7FFFFFFF;  // of a grid along x

// Calls launcher(Kind<type>) with a type that the compiler knows.
template <DataType kType>
struct Kind {
  static constexpr DataType kDtype = kType;
};
template <typename Launcher>
LaunchStatus launch_typed(DataType dtype, const Launcher& launcher) {
  switch (dtype) {
    case DataType::kFloat32:
      return launcher(Kind<DataType::kFloat32>{});
    case DataType::kBFloat16:
      return launcher(Kind<DataType::kBFloat16>{});
    default:
      return launcher(Kind<DataType::kFloat16>{});
  }
}

inline bool all_aligned(std::initializer_list<const std::byte*> pointers) {
  for (const std::byte* const pointer : pointers) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) return false;  // null is aligned
  }
  return true;
}

// Whether every row begins at a multiple of 16 bytes and has whole pieces of eight elements.
inline bool rows_aligned(const LayerRows& rows, std::int32_t size, DataType dtype) {
  bool aligned = size % kPieceElements == 0 && all_aligned({rows.data});
  for (int axis = 0; axis < kRowAxes; ++axis) {
    aligned =
        aligned && (rows.shape[axis] < 2 || rows.strides[axis] * element_size(dtype) % 16 == 0);
  }
  return aligned;
}

// For rows of 1 to kMostNormSize elements.
inline LaunchStatus launch_norm(const NormArguments& arguments, const DeviceShape& device,
                                Stream stream) {
  const std::int64_t rows = arguments.source.count();
  if (rows > kMostRows || arguments.size > kMostNormSize) return kInvalidConfiguration;
  return launch_typed(arguments.dtype, [&](auto kind) {
    constexpr DataType kType = decltype(kind)::kDtype;
    LaunchShape shape = shape_on(device, stream);
    if (arguments.size <= kWarpNormSize) {
      shape.grid.x = static_cast<unsigned>((rows + kRowWarps - 1) / kRowWarps);
      shape.block = kRowWarps * kWarpSize;
      return launch(&short_norm_kernel<kType>, shape, arguments, static_cast<std::uint32_t>(rows));
    }
    shape.grid.x = static_cast<unsigned>(rows);
    shape.block = kNormThreads;
    const bool vectors =
        rows_aligned(arguments.source, arguments.size, kType) &&
        all_aligned({arguments.added, arguments.sum, arguments.weight, arguments.out});
    constexpr std::int32_t kRound = static_cast<std::int32_t>(kNormThreads) * kPieceElements;
    if (arguments.size <= kRound) {
      return launch(&long_norm_kernel<kType, 1>, shape, arguments, vectors);
    }
    if (arguments.size <= 2 * kRound) {
      return launch(&long_norm_kernel<kType, 2>, shape, arguments, vectors);
    }
    return launch(&long_norm_kernel<kType, kNormPieces>, shape, arguments, vectors);
  });
}

// For heads of 2 to kMostRotarySize elements.
inline LaunchStatus launch_rotary(const RotaryArguments& arguments, const DeviceShape& device,
                                  Stream stream) {
  const std::int64_t queries = arguments.queries.source.count();
  const std::int64_t rows = queries + arguments.keys.source.count();
  if (rows > kMostRows || arguments.size > kMostRotarySize) return kInvalidConfiguration;
  return launch_typed(arguments.dtype, [&](auto kind) {
    LaunchShape shape = shape_on(device, stream);
    shape.grid.x = static_cast<unsigned>((rows + kRowWarps - 1) / kRowWarps);
    shape.block = kRowWarps * kWarpSize;
    return launch(&rotary_kernel<decltype(kind)::kDtype>, shape, arguments,
                  static_cast<std::uint32_t>(queries), static_cast<std::uint32_t>(rows));
  });
}

inline LaunchStatus launch_activation(const ActivationArguments& arguments,
                                      const DeviceShape& device, Stream stream) {
  constexpr std::int64_t kBlock = std::int64_t{kActivationThreads} * kPieceElements;
  const std::int64_t blocks = (arguments.count + kBlock - 1) / kBlock;
  if (blocks > kMostRows) return kInvalidConfiguration;
  const bool vectors = all_aligned({arguments.gate, arguments.up, arguments.out});
  return launch_typed(arguments.dtype, [&](auto kind) {
    LaunchShape shape = shape_on(device, stream);
    shape.grid.x = static_cast<unsigned>(blocks);
    shape.block = kActivationThreads;
    return launch(&activation_kernel<decltype(kind)::kDtype>, shape, arguments, vectors);
  });
}

// Blocks a processor below which each of them has more loads on their way.
inline constexpr std::int64_t kProductBlocks = 3;

template <DataType kType, std::int32_t kGroups>
LaunchStatus launch_product_of(const ProductArguments& arguments, const LaunchShape& shape,
                               bool few_blocks) {
  if (arguments.gated) return launch(&product_kernel<kType, 2, kGroups, 1>, shape, arguments);
  if (few_blocks) return launch(&product_kernel<kType, 1, kGroups, 4>, shape, arguments);
  return launch(&product_kernel<kType, 1, kGroups, 2>, shape, arguments);
}

inline LaunchStatus launch_product(const ProductArguments& arguments, const DeviceShape& device,
                                   Stream stream) {
  if (arguments.count > kMostProductRows || arguments.dtype == DataType::kFloat32 ||
      arguments.size % kPieceElements != 0) {
    return kInvalidConfiguration;
  }
  if (arguments.count == 0) return 0;
  std::int64_t tiles = 0;
  for (std::int32_t i = 0; i < (arguments.gated ? 1 : arguments.matrices); ++i) {
    tiles += (arguments.matrix[i].rows + kTileRows - 1) / kTileRows;
  }
  LaunchShape shape = shape_on(device, stream);
  shape.grid.x = static_cast<unsigned>(tiles);
  shape.block = kProductThreads;
  const bool few_blocks = tiles < kProductBlocks * device.processors;
  const bool half = arguments.dtype == DataType::kFloat16;
  if (arguments.count <= kGroupRows) {
    return half ? launch_product_of<DataType::kFloat16, 1>(arguments, shape, few_blocks)
                : launch_product_of<DataType::kBFloat16, 1>(arguments, shape, few_blocks);
  }
  return half ? launch_product_of<DataType::kFloat16, kMostGroups>(arguments, shape, few_blocks)
              : launch_product_of<DataType::kBFloat16, kMostGroups>(arguments, shape, few_blocks);
}

}  // namespace glimprouter::device
