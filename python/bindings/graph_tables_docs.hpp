// Docstrings of GraphTables.
#pragma once

namespace glimprouter::bindings::docs {

inline constexpr const char* kGraphTables =
    R"(Tables of passes at fixed addresses of a device, for what is captured once and replayed.

A smaller pass is padded. The memory is a tensor of zeros, int64 [words], beginning with the ids,
their positions and their slot_mapping, each [tokens], and the tokens whose logits are wanted; each
of these columns is rounded up to an even number. Padding has id 0 and position 0, and names token 0.

Args:
    pool: A pool of pages on a device.
    model: Index of the model.
    tokens: Of a pass, padding included.
    sequences: The most of a pass. Padding belongs to those that a batch leaves free.
    pages: The most of a sequence.
    wanted: The most tokens whose logits are wanted.
    most_tokens: The most new tokens of a sequence; 1 for decode passes.
    heads: Query heads.
    memory: Where the pool is, at least `words()` elements; it is kept alive.

Raises:
    ValueError: A pool in host memory, another size or device.
)";

inline constexpr const char* kGraphFill =
    R"(Bring a batch's columns to their places, on the memory's framework's current stream.

Args:
    batch: A pass that fits, padding included.
    wanted: Tokens of the batch.

Raises:
    ValueError: Another model, no room, or no such token.
    RuntimeError: A graph is being captured now.
)";

inline constexpr const char* kGraphAttend =
    R"(Append the tokens' keys and values to their pages, then attend over the pages: two launches.

Whatever the batch that `fill` brings next, the launches are the same, so they may be captured.

Args:
    layer: In [0, num_layers).
    queries: [1, heads, tokens, size] or [tokens, heads, size].
    keys: Likewise, with the KV heads.
    values: Likewise.
    out: Written: [1, tokens, heads, size] or [tokens, heads, size].
    scratch: float32 [scratch_size] or more; free again when the launches are over.
    scale: Factor of the scores.
    window: Tokens that a token sees, itself included; 0 for all before it.
    softcap: 0 is off.
    sinks: [heads], scores without values (attention sinks); None is off.
    chunk_size: The sequence is cut every so many tokens, and a token sees none before its own cut;
        0 is off.

Raises:
    TypeError: Another element type.
    ValueError: Another shape, stride, device or layer, or an option out of range.
)";

}  // namespace glimprouter::bindings::docs
