// The one body of matrix products, included by every instruction-set file behind
// attention_kernels-inl.hpp.
//
// Specification (the same for every instruction set): that of an attention score. A sum runs over
// 16 virtual lanes (element i belongs to lane i mod 16, a lane adds in index order by fused
// multiply-add) that a tree of halves adds up. So a row's result does not depend on the rows beside
// it: a token has the same bits alone, in a batch, and as a draft among others.

static_assert(kProductLanes == kAttentionLanes);

// Sums that are computed side by side: as many as the registers take, and whole vectors of them.
inline constexpr int kTileSums = Vec::kWidth == 8 ? 8 : 16;

template <int kRows, int kOutputs>
void product_tile(const float* rows, const float* weights, std::int64_t size, float* sums,
                  std::int64_t sums_stride) {
  constexpr int kSums = kRows * kOutputs;
  Vec lanes[kSums][kLaneVectors];
  for (int part = 0; part < kLaneVectors; ++part) {
    Vec own[kRows][kOutputs];
    for (auto& row : own) {
      for (Vec& sum : row) sum = Vec::broadcast(0.0f);
    }
    for (std::int64_t i = part * Vec::kWidth; i < size; i += kProductLanes) {
      Vec weight[kOutputs];
      for (int k = 0; k < kOutputs; ++k) {
        const float* const place = weights + k * size + i;
        __builtin_prefetch(place + kOutputs * size);  // of the next tile, for rows are short
        weight[k] = Vec::load(place);
      }
      for (int row = 0; row < kRows; ++row) {
        const Vec x = Vec::load(rows + row * size + i);
        for (int k = 0; k < kOutputs; ++k) own[row][k] = fma(x, weight[k], own[row][k]);
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int k = 0; k < kOutputs; ++k) lanes[row * kOutputs + k][part] = own[row][k];
    }
  }
  float values[kSums];
  if constexpr (kSums % Vec::kWidth == 0) {
    for (int i = 0; i < kSums; i += Vec::kWidth) sums_of_lanes(lanes + i).store(values + i);
  } else {
    for (int i = 0; i < kSums; ++i) values[i] = sum_of_lanes(lanes[i]);
  }
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kOutputs; ++k) sums[row * sums_stride + k] = values[row * kOutputs + k];
  }
}

// As many whole groups of kRows rows as there are from `first` on; returns the first row behind
// them. Weights are the outer loop: a few of them stay near while the rows go by.
template <int kRows>
std::int32_t product_rows(const ProductTask& task, std::int32_t first) {
  constexpr int kOutputs = kTileSums / kRows;
  const std::int32_t end = first + (task.num_rows - first) / kRows * kRows;
  std::int32_t output = 0;
  for (; output + kOutputs <= task.num_outputs; output += kOutputs) {
    for (std::int32_t row = first; row < end; row += kRows) {
      product_tile<kRows, kOutputs>(task.rows + row * task.size, task.weights + output * task.size,
                                    task.size, task.sums + row * task.num_outputs + output,
                                    task.num_outputs);
    }
  }
  for (; output < task.num_outputs; ++output) {
    for (std::int32_t row = first; row < end; row += kRows) {
      product_tile<kRows, 1>(task.rows + row * task.size, task.weights + output * task.size,
                             task.size, task.sums + row * task.num_outputs + output,
                             task.num_outputs);
    }
  }
  return end;
}

void product(const ProductTask& task) {
  std::int32_t row = product_rows<4>(task, 0);
  row = product_rows<2>(task, row);
  product_rows<1>(task, row);
}
