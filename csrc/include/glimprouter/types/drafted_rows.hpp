// Tokens that were drafted for sequences, and the rows of logits that come of them.
#pragma once

#include <cstdint>
#include <span>

namespace glimprouter {

// Drafts of several sequences, side by side.
struct DraftedTokens {
  std::span<const std::int32_t> rows;    // [n] of the router, distinct
  std::span<const std::int32_t> counts;  // [n] drafts of each, >= 0; empty: none of any
  std::span<const std::int32_t> tokens;  // [sum of counts]
};

// What a call does with its rows of logits.
enum class RowsOf : std::uint8_t {
  kStep = 0,    // one row a sequence, which takes it
  kVerify = 1,  // count + 1 rows a sequence, which takes them as long as its drafts hold
  kDraft = 2,   // one row a sequence behind its drafts, which is only told what it would write
};

// One row of logits.
struct DraftedRow {
  std::int32_t sequence;
  std::int32_t ahead;  // drafts before it
  std::int32_t begin;  // of its sequence's drafts in the list of all
  std::int32_t count;  // of them
};

}  // namespace glimprouter
