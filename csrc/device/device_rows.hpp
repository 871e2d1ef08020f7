// Arguments of the fused row operation on a device. Plain data: every pointer is device memory
// unless said otherwise.
#pragma once

#include <cstdint>

#include "arithmetic/tile_statistics.hpp"
#include "glimprouter/step_boundary.hpp"
#include "glimprouter/types/drafted_rows.hpp"
#include "glimprouter/types/row_types.hpp"
#include "glimprouter/types/row_view.hpp"
#include "glimprouter/types/step_columns.hpp"
#include "router/sequence_step.hpp"

namespace glimprouter {

// Scratch memory of one stream: launches that may overlap need their own.
struct DeviceRowWorkspace {
  TileStatistics* tiles;   // [rows, tiles of a row]
  std::uint32_t* tickets;  // [rows], zero between launches
};

// Statistics and token of every row.
struct EvaluateArguments {
  DeviceRowWorkspace workspace;
  LogitsView logits;
  RowRequest request;          // for all rows, but for what `requests` says
  const RowRequest* requests;  // [rows], or null
  RowResult* results;          // [rows]
  float* logprobs;             // [rows, request.num_logprob_ids]
};

// What a step says about each row, in memory that the device writes.
struct DeviceStepOutputs : ColumnPointers {
  const std::int32_t* logprob_ids;  // [num_logprob_ids]
  std::int32_t num_logprob_ids;
};

// Row numbers of a call that are part of the launch itself; more of them lie in device memory.
inline constexpr std::int32_t kRowsByValue = 256;

// One routed step of many sequences, or what becomes of their drafts. The logits are those of
// `model`, as wide as its vocabulary.
struct StepArguments {
  DeviceRowWorkspace workspace;
  LogitsView logits;
  RowsOf kind;
  Model model;              // whose logits
  Model writer;             // that the rows wait for
  BoundaryTable boundary;   // of the logits' model
  SequenceCore* sequences;  // [num_sequences]
  std::int32_t num_sequences;
  const std::uint8_t* open;                  // [num_sequences]
  TokenRecord* log;                          // [num_sequences, log_capacity]
  std::int64_t log_capacity;                 // >= the most tokens that a sequence may commit
  const std::int32_t* row_numbers;           // [rows], or null:
  std::int32_t rows_by_value[kRowsByValue];  // [rows]
  DeviceStepOutputs outputs;
  // Of rows that are verified or drafted, else null:
  const DraftedRow* drafted;   // [rows]
  const std::int32_t* drafts;  // of all sequences; null where there are none
  RowResult* results;          // [rows]; tickets are [2, rows] then
};

}  // namespace glimprouter
