// Products of a few rows with several weight matrices, by tensor cores: the weights are read once,
// where they are, and nothing else takes time.
//
// A block has kTileRows rows of a matrix, or of two that a gate multiplies. Its warps share their
// elements in chunks of kChunk, in turns; a warp sums its chunks in order, then the block sums its
// warps in order. Neither depends on how many rows come in, so a row has the same bits in any
// batch, and beside any other matrices.
//
// A tensor core takes 16 rows of weights by 16 elements, and 16 elements by a group of 8 incoming
// rows; a second group meets the weights that are in registers for the first. In which order the
// elements are met is free as long as both sides agree: each lane loads eight neighbours, 16 bytes,
// of two rows of weights and of one incoming row of each group, which serve two products.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/device.cuh"
#include "kernels/layers/activation.cuh"
#include "kernels/layers/elements.cuh"

namespace glimprouter::device {

inline constexpr std::uint32_t kProductThreads = 256;
inline constexpr std::uint32_t kProductWarps = kProductThreads / kWarpSize;
inline constexpr std::int32_t kTileRows = 16;
inline constexpr std::int32_t kChunk = 64;  // elements: a line of 128 bytes of every row
inline constexpr std::int32_t kHalves = 2;  // of a chunk: 32 elements, eight for each of four lanes
inline constexpr std::int32_t kGroupRows = 8;  // the columns of a tensor core
inline constexpr std::int32_t kMostGroups = kMostProductRows / kGroupRows;
static_assert(kMostProductRows % kGroupRows == 0, "whole groups");
static_assert(kMostProductRows * kTileRows <= kProductThreads, "a thread writes one result");

template <std::int32_t kTiles, std::int32_t kGroups>
struct ProductShared {
  float sums[kProductWarps][kTiles][kGroups * kGroupRows][kTileRows];
};

// The tile of a block. Matrices are chosen by comparing: indexed, they would be copied to a stack.
struct ProductTile {
  std::int32_t index;  // of the matrix
  std::int32_t first;  // row
};

GR_DEVICE ProductMatrix matrix_of(const ProductArguments& arguments, std::int32_t index) {
  ProductMatrix chosen = arguments.matrix[0];
  GR_UNROLL
  for (std::int32_t i = 1; i < kMostMatrices; ++i) {
    if (i == index) chosen = arguments.matrix[i];
  }
  return chosen;
}

GR_DEVICE ProductTile tile_of(const ProductArguments& arguments) {
  ProductTile tile{0, static_cast<std::int32_t>(blockIdx.x)};
  GR_UNROLL
  for (std::int32_t i = 0; i + 1 < kMostMatrices; ++i) {
    const std::int32_t tiles = (arguments.matrix[i].rows + kTileRows - 1) / kTileRows;
    if (arguments.gated || tile.index != i || i + 1 >= arguments.matrices) continue;
    if (tile.first >= tiles) tile = {i + 1, tile.first - tiles};
  }
  tile.first *= kTileRows;
  return tile;
}

// What a lane reads of a chunk of weights: of each tile two rows, eight elements in each half.
template <std::int32_t kTiles>
struct WeightChunk {
  Vec16 piece[kTiles][kHalves][2];

  GR_DEVICE void load(const std::byte* const (&rows)[kTiles][2], std::int32_t first,
                      std::int32_t size) {
    GR_UNROLL
    for (std::int32_t tile = 0; tile < kTiles; ++tile) {
      GR_UNROLL
      for (std::int32_t half = 0; half < kHalves; ++half) {
        GR_UNROLL
        for (std::int32_t i = 0; i < 2; ++i) {
          const std::int32_t at = first + half * (kChunk / kHalves);
          piece[tile][half][i] = load16_once_if(rows[tile][i] + std::int64_t{at} * 2, at < size);
        }
      }
    }
  }
};

// And of the incoming rows: of each group one, eight elements in each half.
template <std::int32_t kGroups>
struct IncomingChunk {
  Vec16 piece[kGroups][kHalves];

  GR_DEVICE void load(const std::byte* const (&rows)[kGroups], std::int32_t first,
                      std::int32_t size) {
    GR_UNROLL
    for (std::int32_t group = 0; group < kGroups; ++group) {
      GR_UNROLL
      for (std::int32_t half = 0; half < kHalves; ++half) {
        const std::int32_t at = first + half * (kChunk / kHalves);
        piece[group][half] = load16_if(rows[group] + std::int64_t{at} * 2, at < size);
      }
    }
  }
};

// What a lane sums.
template <std::int32_t kTiles, std::int32_t kGroups>
struct ProductSums {
  float of[kTiles][kGroups][4] = {};

  template <DataType kType>
  GR_DEVICE void add(const WeightChunk<kTiles>& weights, const IncomingChunk<kGroups>& x) {
    GR_UNROLL
    for (std::int32_t half = 0; half < kHalves; ++half) {
      GR_UNROLL
      for (std::int32_t pair = 0; pair < 2; ++pair) {
        GR_UNROLL
        for (std::int32_t group = 0; group < kGroups; ++group) {
          const Vec16& own = x.piece[group][half];
          const std::uint32_t right[2] = {own.word[2 * pair], own.word[2 * pair + 1]};
          GR_UNROLL
          for (std::int32_t tile = 0; tile < kTiles; ++tile) {
            const Vec16(&rows)[2] = weights.piece[tile][half];
            const std::uint32_t left[4] = {rows[0].word[2 * pair], rows[1].word[2 * pair],
                                           rows[0].word[2 * pair + 1], rows[1].word[2 * pair + 1]};
            multiply_tile<kType == DataType::kBFloat16>(left, right, of[tile][group]);
          }
        }
      }
    }
  }

  GR_DEVICE void leave(ProductShared<kTiles, kGroups>& shared) const {
    const auto warp = static_cast<std::int32_t>(threadIdx.x / kWarpSize);
    const auto lane = static_cast<std::int32_t>(threadIdx.x % kWarpSize);
    GR_UNROLL
    for (std::int32_t tile = 0; tile < kTiles; ++tile) {
      GR_UNROLL
      for (std::int32_t group = 0; group < kGroups; ++group) {
        GR_UNROLL
        for (std::int32_t k = 0; k < 4; ++k) {
          const std::int32_t column = group * kGroupRows + lane % 4 * 2 + k % 2;
          shared.sums[warp][tile][column][lane / 4 + k / 2 * 8] = of[tile][group][k];
        }
      }
    }
  }
};

// A sum of the block, of row `first + row` of a tile's matrix and one incoming row.
template <std::int32_t kTiles, std::int32_t kGroups>
GR_DEVICE float summed(const ProductShared<kTiles, kGroups>& shared, std::int32_t tile,
                       const ProductMatrix& matrix, std::int32_t first, std::int32_t row,
                       std::int32_t column, DataType dtype) {
  float total = 0.0f;
  GR_UNROLL
  for (std::uint32_t warp = 0; warp < kProductWarps; ++warp) {
    total = total + shared.sums[warp][tile][column][row];
  }
  if (matrix.bias == nullptr) return total;
  return total + read_element(matrix.bias + (first + row) * 2, dtype);
}

// An element of the results a thread.
template <DataType kType, std::int32_t kTiles, std::int32_t kGroups>
GR_DEVICE void write_tile(const ProductArguments& arguments, const ProductTile& tile,
                          const ProductShared<kTiles, kGroups>& shared) {
  const auto row = static_cast<std::int32_t>(threadIdx.x) % kTileRows;
  const auto column = static_cast<std::int32_t>(threadIdx.x) / kTileRows;
  const ProductMatrix matrix = matrix_of(arguments, tile.index);
  if (column >= arguments.count || tile.first + row >= matrix.rows) return;
  float value = summed(shared, 0, matrix, tile.first, row, column, kType);
  if constexpr (kTiles == 2) {
    const ProductMatrix other = arguments.matrix[1];
    const float up = summed(shared, 1, other, tile.first, row, column, kType);
    value = gated<kType>(rounded<kType>(value), rounded<kType>(up), arguments.activation);
  }
  const std::int64_t at = (std::int64_t{column} * matrix.rows + tile.first + row) * 2;
  if (arguments.added != nullptr && tile.index == 0) {
    value = rounded<kType>(value) + read_element(arguments.added + at, kType);
  }
  write_element(matrix.out + at, kType, value);
}

// Where a lane reads. Rows that are not there are read as others that are; what comes of them is
// not written.
template <std::int32_t kTiles>
GR_DEVICE void find_weights(const ProductArguments& arguments, const ProductTile& tile,
                            const std::byte* (&rows)[kTiles][2]) {
  GR_UNROLL
  for (std::int32_t i = 0; i < kTiles; ++i) {
    const ProductMatrix matrix = matrix_of(arguments, tile.index + i);
    GR_UNROLL
    for (std::int32_t k = 0; k < 2; ++k) {
      const std::int32_t own = static_cast<std::int32_t>(threadIdx.x % kWarpSize) / 4 + 8 * k;
      const std::int32_t row = tile.first + own < matrix.rows ? tile.first + own : tile.first;
      rows[i][k] = matrix.weight + std::int64_t{row} * arguments.size * 2;
    }
  }
}

template <std::int32_t kGroups>
GR_DEVICE void find_incoming(const ProductArguments& arguments, const std::byte* (&rows)[kGroups]) {
  GR_UNROLL
  for (std::int32_t group = 0; group < kGroups; ++group) {
    const std::int32_t own =
        static_cast<std::int32_t>(threadIdx.x % kWarpSize) / 4 + kGroupRows * group;
    rows[group] = arguments.x + std::int64_t{own < arguments.count ? own : 0} * arguments.size * 2;
  }
}

// kTiles: 1, or 2 for a gate and what it lets through. kGroups: of incoming rows. kAhead: chunks of
// weights whose loads a warp has on their way. The incoming rows of as many come together, but
// those of two groups one by one beside four chunks: a thread may have 128 registers, or of the
// blocks of a matrix with few rows some would wait for others. grid: tiles of all matrices.
template <DataType kType, std::int32_t kTiles, std::int32_t kGroups, std::int32_t kAhead>
GR_KERNEL(kProductThreads)
void product_kernel(const ProductArguments arguments) {
  launch_dependents();
  using Shared = ProductShared<kTiles, kGroups>;
  GR_SHARED(Shared, shared);
  constexpr auto kWarpStride = static_cast<std::int32_t>(kProductWarps) * kChunk;
  constexpr std::int32_t kTogether = kGroups == 1 || kAhead < 4 ? kAhead : 1;
  static_assert(kAhead % kTogether == 0);
  const std::int32_t size = arguments.size;
  const std::int32_t piece = static_cast<std::int32_t>(threadIdx.x % 4) * kPieceElements;
  const ProductTile tile = tile_of(arguments);
  const std::byte* rows[kTiles][2];
  find_weights<kTiles>(arguments, tile, rows);
  const std::byte* incoming[kGroups];
  find_incoming<kGroups>(arguments, incoming);
  ProductSums<kTiles, kGroups> sums;
  WeightChunk<kTiles> weights[kAhead];
  std::int32_t chunk = static_cast<std::int32_t>(threadIdx.x / kWarpSize) * kChunk;
  GR_UNROLL
  for (std::int32_t k = 0; k < kAhead; ++k) {
    weights[k].load(rows, chunk + k * kWarpStride + piece, size);
  }
  wait_for_dependencies();  // nobody writes the weights: their first loads are on their way
  while (chunk < size) {    // the same for a whole warp
    GR_UNROLL
    for (std::int32_t first = 0; first < kAhead; first += kTogether) {
      IncomingChunk<kGroups> x[kTogether];
      GR_UNROLL
      for (std::int32_t k = 0; k < kTogether; ++k) {
        x[k].load(incoming, chunk + (first + k) * kWarpStride + piece, size);
      }
      GR_UNROLL
      for (std::int32_t k = 0; k < kTogether; ++k) {
        if (chunk + (first + k) * kWarpStride >= size) continue;
        sums.template add<kType>(weights[first + k], x[k]);
      }
    }
    chunk += kAhead * kWarpStride;
    if (chunk >= size) break;
    GR_UNROLL
    for (std::int32_t k = 0; k < kAhead; ++k) {
      weights[k].load(rows, chunk + k * kWarpStride + piece, size);
    }
  }
  sums.leave(shared);
  __syncthreads();
  write_tile<kType, kTiles>(arguments, tile, shared);
}

}  // namespace glimprouter::device
