// Docstrings of DecodeTables.
#pragma once

namespace glimprouter::bindings::docs {

inline constexpr const char* kDecodeTables =
    R"(Tables of decode passes at fixed addresses of a device, for what is captured once and replayed.

A pass computes one new token of each of its sequences; one over fewer sequences, or shorter tables,
is padded. The memory is a tensor of zeros, int64 [words], beginning with the ids, their positions
and their slot_mapping, each of these columns [sequences], rounded up to an even number; padding has id 0
and position 0.

Args:
    pool: A pool of pages on a device.
    model: Index of the model.
    sequences: The most of a pass.
    pages: The most of a sequence.
    heads: Query heads.
    memory: Where the pool is, at least `words()` elements; it is kept alive.

Raises:
    ValueError: A pool in host memory, another size or device.
)";

inline constexpr const char* kDecodeFill =
    R"(Bring a batch's columns to their places, on the memory's framework's current stream.

Args:
    batch: One new token a sequence.

Raises:
    ValueError: Another model, more than one token of a sequence, or no room.
    RuntimeError: A graph is being captured now.
)";

inline constexpr const char* kDecodeAttend =
    R"(Append the tokens' keys and values to their pages, then attend over the pages: two launches.

Whatever the batch that `fill` brings next, the launches are the same, so they may be captured.

Args:
    layer: In [0, num_layers).
    queries: [1, heads, sequences, size] or [sequences, heads, size].
    keys: Likewise, with the KV heads.
    values: Likewise.
    out: Written: [1, sequences, heads, size] or [sequences, heads, size].
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
