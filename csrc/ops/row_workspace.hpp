// Scratch memory of the row operation and what its first pass leaves behind. Internal.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/cpu_backend.hpp"
#include "glimprouter/row_op.hpp"

namespace glimprouter {

struct RowWorkspace::Buffers {
  explicit Buffers(std::int64_t max_vocabulary);

  std::int64_t max_vocabulary;
  std::vector<TileStatistics> tiles;
  std::vector<float> tile_scratch;      // [kTileSize]
  std::vector<Candidate> candidates;    // [max_vocabulary]
  std::vector<Candidate> sort_scratch;  // [max_vocabulary]
  std::vector<float> values;            // [max_vocabulary] logits of the candidates
  std::vector<float> weights;           // [max_vocabulary] e^((value - maximum) / T)
};

}  // namespace glimprouter
