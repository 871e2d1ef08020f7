// Matrix products of many rows at a time, included behind product_kernels-inl.hpp: a vector holds
// the same element of several rows, so that a weight is loaded once for all of them and no sum has
// to be added up across a vector. A row gets the bits of that file's code: the same 16 virtual
// lanes, and the same tree of halves.

static_assert(kProductBlockRows % Vec::kWidth == 0);

// Sums of some vectors of rows for some outputs.
template <int kVectors, int kOutputs>
struct BlockSums {
  Vec of[kOutputs][kVectors];

  void add(const BlockSums& other) {
    for (int k = 0; k < kOutputs; ++k) {
      for (int v = 0; v < kVectors; ++v) of[k][v] = other.of[k][v] + of[k][v];
    }
  }
};

// What one virtual lane adds up.
template <int kVectors, int kOutputs>
inline __attribute__((always_inline)) BlockSums<kVectors, kOutputs> lane_sums(const float* columns,
                                                                              const float* weights,
                                                                              std::int64_t size,
                                                                              std::int64_t lane) {
  BlockSums<kVectors, kOutputs> sums;
  for (auto& output : sums.of) {
    for (Vec& sum : output) sum = Vec::broadcast(0.0f);
  }
  for (std::int64_t i = lane; i < size; i += kProductLanes) {
    Vec x[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      x[v] = Vec::load(columns + i * kProductBlockRows + v * Vec::kWidth);
    }
    for (int k = 0; k < kOutputs; ++k) {
      const Vec weight = Vec::broadcast(weights[k * size + i]);
      for (int v = 0; v < kVectors; ++v) sums.of[k][v] = fma(x[v], weight, sums.of[k][v]);
    }
  }
  return sums;
}

// The lanes in an order in which each sum of the tree is complete as early as it can be, so that
// few of them wait at a time.
inline constexpr std::int64_t kLaneOrder[kProductLanes] = {0, 8, 4, 12, 2, 10, 6, 14,
                                                           1, 9, 5, 13, 3, 11, 7, 15};
inline constexpr int kTreeLevels = 4;

template <int kVectors, int kOutputs>
void block_tile(const float* columns, const float* weights, std::int64_t size, float* sums) {
  BlockSums<kVectors, kOutputs> waiting[kTreeLevels + 1];  // for the other half, by level
  for (int turn = 0; turn < kProductLanes; ++turn) {
    auto own = lane_sums<kVectors, kOutputs>(columns, weights, size, kLaneOrder[turn]);
    int level = 0;
    for (; (turn >> level & 1) != 0; ++level) own.add(waiting[level]);
    waiting[level] = own;
  }
  for (int k = 0; k < kOutputs; ++k) {
    for (int v = 0; v < kVectors; ++v) {
      waiting[kTreeLevels].of[k][v].store(sums + k * kProductBlockRows + v * Vec::kWidth);
    }
  }
}

// Some vectors of rows, from the vector `first` on, for all outputs.
template <int kVectors, int kOutputs>
void block_vectors(const ProductBlock& block, std::int32_t first) {
  const std::int32_t row = first * Vec::kWidth;
  std::int32_t output = 0;
  for (; output + kOutputs <= block.num_outputs; output += kOutputs) {
    const float* const weights = block.weights + output * block.size;
    if (first == 0) {  // the next tile's: they come from far away, and the first to need them waits
      constexpr std::int64_t kLine = 16;  // floats
      for (std::int64_t i = 0; i < kOutputs * block.size; i += kLine) {
        __builtin_prefetch(weights + kOutputs * block.size + i);
      }
    }
    block_tile<kVectors, kOutputs>(block.columns + row, weights, block.size,
                                   block.sums + output * kProductBlockRows + row);
  }
  for (; output < block.num_outputs; ++output) {
    block_tile<kVectors, 1>(block.columns + row, block.weights + output * block.size, block.size,
                            block.sums + output * kProductBlockRows + row);
  }
}

void product_block(const ProductBlock& block) {
  const std::int32_t vectors = (block.num_rows + Vec::kWidth - 1) / Vec::kWidth;
  std::int32_t vector = 0;
  for (; vector + 2 <= vectors; vector += 2) block_vectors<2, 4>(block, vector);
  if (vector < vectors) block_vectors<1, 8>(block, vector);
}
