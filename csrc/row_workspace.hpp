// Scratch memory of the row operation and what its first pass leaves behind. Internal.
#pragma once

#include <cstdint>
#include <vector>

#include "glimprouter/cpu_backend.hpp"
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

// The tiles of a valid row merged in index order, relative to the row's maximum.
struct RowSums {
  float maximum = 0;
  double sum = 0;       // sum e^(x - m)
  double weighted = 0;  // sum (x - m) e^(x - m)
  double squared = 0;   // sum (x - m)^2 e^(x - m), when asked for
  double sampling = 0;  // sum e^((x - m) / T)
  std::int64_t num_tiles = 0;
};

// A tile whose maximum lies more than 40 max(1, T) below the row's contributes exactly nothing.
inline bool tile_counts(const TileStatistics& tile, float row_maximum, float temperature) {
  return tile.maximum - row_maximum >= -40.0f * (temperature > 1.0f ? temperature : 1.0f);
}

}  // namespace glimprouter
