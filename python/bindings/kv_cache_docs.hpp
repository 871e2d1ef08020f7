// What help() shows of the paged KV cache.
#pragma once

namespace glimprouter::bindings::docs {

inline constexpr const char* kLayerShape =
    R"(What one layer keeps of a token.

Args:
    num_kv_heads: Heads of keys and values, >= 1.
    head_dim: Elements of a key, >= 1.
    value_dim: Elements of a value; None for as many as a key has.
    shares: An earlier layer of the same shape whose keys and values this one reads, so that it
        keeps none (the last layers of Gemma 3n and Gemma 4); None for its own.
    latent: The values are the first value_dim elements of the keys and are not kept again (the
        latent vectors of multi-head latent attention, DeepSeek V2, arXiv 2405.04434).

Attributes: the arguments.
)";

inline constexpr const char* kLayerLayout =
    R"(Where the keys and values of one layer lie in a page: [head, token, element] each.

Attributes: num_kv_heads, head_dim, value_dim; and in bytes key_offset, value_offset (from the page's
first byte), key_head_stride, key_token_stride, value_head_stride, value_token_stride.
)";

inline constexpr const char* kLayoutNumbers =
    R"(The layout as a list of int, which torch.ops.glimprouter takes.)";

inline constexpr const char* kLayoutSharing =
    R"(Layers that read the keys and values of others, ascending: nothing is appended to these.)";

inline constexpr const char* kLayoutLatent =
    R"(Layers whose values lie within their keys, ascending: keys alone are appended to these.)";

inline constexpr const char* kKvLayout =
    R"(How one model's keys and values lie in a page: a list of layers, each of its own geometry.

Two forms: layers of one shape by ``num_layers``, ``num_kv_heads`` and ``head_dim``, others by
``layers``.

Args:
    num_layers, num_kv_heads, head_dim: Sizes of the model, each >= 1.
    layers: A LayerShape a layer.
    page_size: Tokens of a page, >= 1.
    dtype: "float32", "bfloat16" or "float16".

Attributes: num_layers, layers, sharing, latent, page_size, page_bytes, numbers; ``layer(i)`` is a LayerLayout.

Raises:
    ValueError: No layer, a size below 1, another dtype, a layer that shares one that is not before
        it or has another shape, or latent values with more elements than the keys.
)";

inline constexpr const char* kPagePool =
    R"(One arena of pages for several models, cut in sectors that go to whichever model needs them.

Args:
    layouts: A KvLayout a model.
    arena_bytes: Memory to take, rounded down to whole sectors; one sector holds the null page.
    sector_bytes: A multiple of 256 that holds a page of each layout; 0 chooses one.
    device: Where the pages are: "cpu", or a device such as "cuda:0" (see build_info). The
        tensors of append_kv, gather_kv and paged_attention are on the same one.

Raises:
    ValueError: No layout, an arena without a sector a model, a sector that does not fit, or a
        device that this build does not know.
    RuntimeError: There is no such device, or it has not as much memory.
)";

inline constexpr const char* kKvCache =
    R"(Paged keys and values of many sequences; their generated tokens are shared by all models.

A model falls behind while another writes; prepare() gives the batch that brings it to the frontier.

Args:
    pool: Where the pages come from; or a list with the pool of each model, where models are on
        several devices: every pool has the layouts of all models, and lends pages to its own.
    max_sequences: Sequences that can be open at a time, >= 1.
    vocabulary_map: A VocabularyMap where the models' vocabularies differ.

Raises:
    ValueError: max_sequences < 1, or a map or pools of another number of models or other layouts.
)";

inline constexpr const char* kKvOpen = R"(Starts a sequence; takes no page.

Args:
    prompts: Ids by each model's own template, one list a model, none empty; with a map, of ids in
        its model's vocabulary.

Returns:
    The sequence, to be used in every other call.

Raises:
    ValueError: Another number of prompts, an empty one, or an id outside its vocabulary.
    RuntimeError: All sequences are in use.
)";

inline constexpr const char* kKvFork =
    R"(A copy that shares every page; a shared page is copied before it is written.

Raises:
    IndexError: The sequence is not open.
    RuntimeError: All sequences are in use, or this one is part of a batch in flight.
)";

inline constexpr const char* kKvAppend =
    R"(Moves the frontier forward by some generated tokens; takes no page.

Args:
    model: Who wrote them: says which vocabulary they are of, where there are several.
    sequence: An open sequence.
    ids: A list, or a 1-D int32 or int64 tensor.

Raises:
    ValueError: With a map: an id outside the vocabulary, or without counterpart in another.
)";

inline constexpr const char* kPendingSpans =
    R"(Texts that a model has no tokens for yet, as bytes, extended to whole characters.

Tokens of another vocabulary that have no image in the model's own wait here until it is to run.
)";

inline constexpr const char* kKvResolve =
    R"(Gives a model its own tokens for every pending span; prepare() wants that.

A span that begins within a character replaces tokens before it: if they were computed, that is
dropped and counted (excess).

Args:
    model: Index of the model.
    sequence: An open sequence.
    spans: A list of ids for each of pending_spans().

Raises:
    ValueError: Another number of lists, or ids that do not write the span.
)";

inline constexpr const char* kKvTruncate =
    R"(Moves the frontier back; what any model computed beyond it is dropped.

Args:
    sequence: An open sequence.
    generated: Generated tokens to keep, in [0, those there are].

Raises:
    ValueError: Another number.
)";

inline constexpr const char* kKvForget =
    R"(Drops the last tokens that a model has computed: it computes them again.

Args:
    model: Index of the model.
    sequence: An open sequence.
    count: In [0, computed(model, sequence)].

Raises:
    ValueError: Another number.
)";

inline constexpr const char* kKvCastCopy =
    R"(Gives one model what another has computed, cast to the type of its pages.

For models of equal weights whose layouts differ in type or page size only: a draft in bfloat16 and
its float32 original need one prefill.

Args:
    sequence: An open sequence.
    source: Index of the model that has computed.
    target: Index of the model that gets it.

Returns:
    Tokens copied; 0 where the target has computed as many.

Raises:
    OutOfPages: Nothing has changed.
    ValueError: Layouts of other layers, heads or head size, tokens that differ, or models whose
        pages are in different pools.
    RuntimeError: The sequence is part of a batch in flight.
)";

inline constexpr const char* kKvPrepare =
    R"(The batch of exactly the tokens that a model has not computed, with pages for them.

Args:
    model: Index of the model's layout in the pool.
    sequences: Distinct open sequences, each with at least one such token.
    ends: How many tokens the model has computed of each sequence afterwards, prompt included, where
        a pass stops before the frontier; None for the frontier of all.

Returns:
    A RaggedBatch. It is in flight until complete() after the forward pass, or abandon().

Raises:
    OutOfPages: Nothing has changed; close or preempt (save, then close) a sequence.
    ValueError: A sequence named twice, with nothing to compute, or with spans that are pending; an
        end that is not behind what is computed, or behind the frontier.
    RuntimeError: A sequence is part of another batch in flight.
)";

inline constexpr const char* kPaddedTables =
    R"(The tables with one sequence more, which has no token, and at least two pages in a row.

So no size but T can be 1, for which compilers make a graph of its own.

Returns:
    slot_mapping int64 [T], block_table int32 [B + 1, pages], cu_seqlens int32 [B + 2], seq_lens int32
    [B + 1]: arrays of their own.
)";

inline constexpr const char* kKvComplete = R"(The batch's tokens have been computed.

Raises:
    RuntimeError: The batch is not in flight.
)";

inline constexpr const char* kKvAbandon =
    R"(The batch's tokens have not been computed: its new pages go back.

Raises:
    RuntimeError: The batch is not in flight.
)";

inline constexpr const char* kKvSave =
    R"(A sequence as bytes, keys and values included; it stays open.)";

inline constexpr const char* kKvLoad = R"(Opens a sequence from what save() gave.

Raises:
    OutOfPages: Nothing has changed.
    ValueError: Foreign, damaged or shortened bytes, or another KV layout (the message names it).
    RuntimeError: All sequences are in use.
)";

inline constexpr const char* kKvCheckSaved =
    R"(The checks of load() alone.

Returns:
    Tokens that each model has computed, prompt included, [models].

Raises:
    ValueError: As load().
)";

}  // namespace glimprouter::bindings::docs
