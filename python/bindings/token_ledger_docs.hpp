// What help() shows of the vocabulary map and the token ledger.
#pragma once

namespace glimprouter::bindings::docs {

inline constexpr const char* kVocabularyMap =
    R"(What the tokens of one vocabulary are in another: the same bytes, or the same role.

Args:
    vocabularies: Bytes of each token, one list a model; None for special tokens.
    roles: Ids with the same role (end of thinking, ...), each [models]. Of several counterparts of
        an id the first one counts. Tokens with a role are no text.
    secondary_ids: One list a model: last choice among tokens with the same bytes (added tokens, and
        the bytes of byte fallback).

Raises:
    TypeError: A token that is neither bytes nor None.
    ValueError: Fewer than two vocabularies, an id outside its vocabulary, or a token whose bytes
        another vocabulary cannot write (the message shows them).
)";

inline constexpr const char* kImage =
    R"(The token of the target vocabulary with the same role or bytes, or None.

Args:
    source, target: Indices of models.
    id: In the source vocabulary.
)";

inline constexpr const char* kExpressible =
    R"(Whether a token has an image in the target vocabulary, or bytes that can be written in it.)";

inline constexpr const char* kWrites =
    R"(Whether these ids are tokens of text that together are exactly these bytes.)";

inline constexpr const char* kSegment =
    R"(The fewest tokens of text that write these bytes, the longest first of several, or None.)";

inline constexpr const char* kTokenLedger =
    R"(The tokens generated so far, in the ids of each model.

A token with an image in another model's vocabulary is taken over at once. The others wait, as text,
until that model is about to run: pending_spans(), resolve(). Which ids stand for the same text is
remembered, so that truncate() is exact for every model.

Args:
    vocabulary_map: Map of the models' vocabularies; None where all share one.

len() is the frontier: the number of tokens written, by whichever model.
)";

inline constexpr const char* kLedgerAppend = R"(Adds tokens that a model wrote.

Args:
    model: The writer.
    ids: In its vocabulary: a list, or a 1-D int32 or int64 tensor.

Raises:
    ValueError: An id outside the vocabulary, or without counterpart in another.
)";

inline constexpr const char* kLedgerResolve =
    R"(Gives a model its own tokens for every pending span.

Args:
    model: Index of the model.
    spans: A list of ids for each of pending_spans().

Returns:
    How many of the model's ids are as before; a span that begins within a character replaces some.

Raises:
    ValueError: Another number of lists, or ids that do not write the span.
)";

inline constexpr const char* kLedgerTruncate =
    R"(Drops written tokens behind the first so many.

Args:
    size: Tokens to keep, in [0, len()].

Returns:
    For each list (one a model; one where all share): ids that are as before, and how many of those
    behind them stood for a span that is cut, so that a part of its text stays.

Raises:
    ValueError: Another number.
)";

inline constexpr const char* kLedgerSave = R"(The ledger as bytes, for load().)";

inline constexpr const char* kLedgerLoad =
    R"(A ledger from what save() gave.

Args:
    saved: Bytes of save().
    vocabulary_map: The map that the ledger was saved with.

Raises:
    ValueError: Foreign, damaged or shortened bytes, or another map.
)";

}  // namespace glimprouter::bindings::docs
