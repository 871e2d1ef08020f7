// The table of vector kernels that one instruction set fills, and the choice among them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "arithmetic/tile_statistics.hpp"
#include "cpu/attention_task.hpp"
#include "cpu/product_task.hpp"
#include "glimprouter/types/row_types.hpp"
#include "glimprouter/types/row_view.hpp"

namespace glimprouter {

struct StatisticsRequest {
  bool sampling = false;  // a second sum at the temperature 1 / inverse_temperature
  bool squared = false;
  float inverse_temperature = 1.0f;
};

struct CpuKernels {
  std::string_view name;
  // Statistics of every tile of the row. scratch: [kTileSize].
  void (*row_statistics)(const RowView& row, const StatisticsRequest& request, float* scratch,
                         TileStatistics* tiles);
  // The tile as fp32, padded with -inf to a multiple of kLanes, whose count is stored. The result
  // points into the row when that is possible (it may then be unaligned), else to scratch.
  const float* (*load_tile)(const RowView& row, std::int64_t tile, float* scratch,
                            std::int32_t* count);
  // First index that holds the maximum, and the largest of the other elements.
  void (*top_two)(const float* tile, std::int32_t count, float maximum, std::int32_t* first_index,
                  float* second);
  // Appends the elements >= pivot (pivot > -inf), in index order. Returns their number.
  std::int64_t (*collect)(const float* tile, std::int32_t count, float pivot, std::int32_t first_id,
                          Candidate* candidates);
  // out[i] = e^((values[i] - maximum) inverse_temperature)
  void (*exponentials)(const float* values, std::int64_t count, float maximum,
                       float inverse_temperature, float* out);
  // Attention over pages (attention_task.hpp).
  void (*attend)(const AttentionTask& task, float* scratch);
  // Elements side by side as those of another type (cast.hpp).
  void (*cast)(const std::byte* source, DataType source_type, std::byte* target,
               DataType target_type, std::int64_t count);
  // Pieces of a matrix product (product_task.hpp).
  void (*product)(const ProductTask& task);
  void (*product_block)(const ProductBlock& block);
  // Replaces the whole row operation (the emulator); null otherwise.
  RowResult (*evaluate)(const RowView& row, const RowRequest& request, float* logprobs) = nullptr;
};

// For the tests: one more, which is taken only by its name.
void add_backend(const CpuKernels& kernels);
// Every instruction set in this build, the preferred one last.
std::span<const CpuKernels* const> compiled_backends();
// Whether this processor can run it.
bool backend_supported(const CpuKernels& kernels);
// The kernels in use: the last supported one, or the one that the environment variable
// GLIMPROUTER_ISA names. Throws std::invalid_argument at the first call when that name is unknown,
// not in this build, or not supported by this processor.
const CpuKernels& active_backend();
// Changes the kernels in use (for tests; not while another thread evaluates rows). Throws as above.
void set_active_backend(std::string_view name);

}  // namespace glimprouter
