// Passes of one model that follow one another, in one call: the model, the router and the KV cache
// without anything between them. Internal.
//
// Between two passes of a loop in another language lie some hundred microseconds, as much as a pass
// of a small model takes. While the same model goes on writing the same sequences, there is nothing
// to decide there.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>

#include "glimprouter/kv_cache.hpp"
#include "glimprouter/step_router.hpp"
#include "ops/host_decoder.hpp"

namespace glimprouter {

// Who writes what. All is borrowed.
struct Writing {
  HostDecoder& decoder;
  RotaryTables angles;
  KvCache& cache;
  StepRouter& router;  // on the CPU
  Model model;
  std::int32_t model_index;                 // in the cache
  std::span<const std::int32_t> sequences;  // of the cache
  std::span<const std::int32_t> rows;       // of the router, one of each sequence
};

// Goes on behind a call of the router for the same rows, whose outputs are `last`: appends its
// tokens to the sequences, computes a pass, takes a step, and so on. The outputs of the step of
// pass k, counted from 0, are entries k * rows and on of `ahead`; those of passes that there were
// not are kNotReached, so that a caller who is interrupted finds out. What the last pass brought is
// left for the caller to append, as behind any step.
//
// Ends when a sequence does not simply go on (its step, its thinking or the sequence ends, a budget
// closes it, a row's logits are invalid), when `ahead` is full, when the time is over, or when a
// pass cannot be computed, for want of pages, say: nothing came of that one, and the caller meets
// the reason when it computes it. Returns the passes, perhaps none. Throws std::invalid_argument,
// before anything is done, where rows and sequences, or the outputs, do not fit together.
std::int32_t passes_ahead(const Writing& writing, const StepOutputs& last, StepOutputs& ahead,
                          std::chrono::nanoseconds most_time);

}  // namespace glimprouter
