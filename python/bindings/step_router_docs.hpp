// What help() shows of the router's methods.
#pragma once

namespace glimprouter::bindings::docs {

inline constexpr const char* kClose = R"(Ends a sequence and frees its row.

Args:
    row: An open row.

Raises:
    IndexError: The row is not open.
)";

inline constexpr const char* kFork =
    R"(Copies a sequence; the copy draws from a random substream of its own.

Args:
    row: An open row.
    substream: Random key of the copy, in [0, 2^64); None derives one from the parent's.

Returns:
    The row of the copy.

Raises:
    IndexError: The row is not open.
    RuntimeError: All rows are in use.
)";

inline constexpr const char* kRewind = R"(Drops the last generated tokens of a sequence.

At a step's start the row comes back undecided: its glimpse is wanted again. Draws depend on the
position alone, so the same logits give the same tokens again.

Args:
    row: An open row.
    count: Tokens to drop, forced closing ids included, in [0, position(row)].

Raises:
    IndexError: The row is not open.
    ValueError: Another count, or one that ends inside the closing ids.
)";

inline constexpr const char* kSave = R"(The whole state of a sequence as bytes, for load().

Args:
    row: An open row, which stays open.

Raises:
    IndexError: The row is not open.
)";

inline constexpr const char* kLoad =
    R"(Opens a sequence from what save() gave, here or in another process.

Args:
    state: Bytes of save(), by a router with the same boundaries.

Returns:
    The new row.

Raises:
    ValueError: Foreign, damaged or shortened bytes, another format version, or other boundaries.
    RuntimeError: All rows are in use.
)";

inline constexpr const char* kPending =
    R"(Rows that wait for a model's logits, ascending, int32 [n].

Args:
    model: "small" or "large".
)";

inline constexpr const char* kStep =
    R"(step(model, logits, rows, out): from logits to tokens and routes.

Statistics, selection, step boundary, transition and route of each row in one pass over its logits.
Allocates nothing for up to 256 rows. A row whose logits hold NaN, +inf or nothing but -inf is reported in out.status
and unchanged; the others go on.

Args:
    model: "small" or "large": who computed the logits.
    logits: [n, width], float32, bfloat16 or float16, on the CPU, width >= boundary.vocab_size,
        contiguous along the width.
    rows: n distinct rows of pending(model): a list, or an int32 or int64 tensor.
    out: From outputs(m), m >= n; entry i is about rows[i].

Raises:
    TypeError: Another element type, or no tensor.
    ValueError: Another shape, stride or device, a row named twice or not waiting for this model.
    IndexError: A row that is not open.
    RuntimeError: Another thread than the router's.
)";

inline constexpr const char* kVerify =
    R"(verify(model, logits, rows, counts, drafts, out) -> int32 [n]: many tokens of a row at once.

Each row comes with tokens that were drafted for it, by whomever, and with the logits of the model
that it waits for behind each of them. A draft holds if it is the token that these logits give in
its place, drawn by the key of that place as step() draws it: so drafts change no token, they only
save passes of the model. Rows of logits are evaluated side by side, then each sequence takes its
tokens in order while its drafts hold: a step that ends with a hand-off, the end of thinking, a
closing by force, invalid logits stop it there. Without drafts this is step().

Args:
    model: "small" or "large": who computed the logits.
    logits: [n + sum(counts), width] as in step(): for each row counts[i] + 1 rows side by side,
        behind what the sequence has, then behind each of its drafts.
    rows: n distinct rows of pending(model).
    counts: Drafts of each row, n integers in [0, room), where room is out.room of the row's last
        call.
    drafts: sum(counts) ids of the model's vocabulary, row behind row.
    out: From outputs(m), m >= n + sum(counts). An entry for each row of logits; status is
        NOT_REACHED behind a draft that did not hold, or behind what stops the row.

Returns:
    Tokens that each row took: its drafts that held, and the one behind them.

Raises:
    As step(); also:
    ValueError: Counts or drafts that do not fit together, a draft outside the vocabulary, or more
        drafts than the row has room for.
)";

inline constexpr const char* kDraft =
    R"(draft(model, logits, rows, counts, drafts, out): what the other model would write.

For rows that wait for one model, this draws from the logits of the other, behind the drafts that
each row has so far, with the key of the model that it waits for: where both give the same
distribution, verify() will take the draft. No row changes.

Args:
    model: "small" or "large": who computed the logits, and whom the rows do not wait for.
    logits: [n, width] as in step().
    rows: n distinct rows that wait for the other model.
    counts: Drafts of each row so far, n integers in [0, room).
    drafts: sum(counts) ids of this model's vocabulary, row behind row.
    out: From outputs(m), m >= n: what step() would say there. token is the draft, phase and room
        are those behind it; status is NOT_REACHED, and token -1, where the drafts so far end what
        the other model may write.

Raises:
    As verify().
)";

inline constexpr const char* kLaunch =
    R"(launch(model, logits, rows, out): starts a step on the router's device and returns.

Like step(), but nothing waits: wait(out) fills the outputs. It may be captured into a CUDA graph
(once the outputs exist and every sequence is open) and replayed; every replay draws fresh numbers,
because the positions live on the device. A row that does not wait for the model is left alone and
reported with status NOT_WAITING.

Args:
    model: "small" or "large".
    logits: [B, V] on the router's device.
    rows: B distinct rows: a list, or a contiguous int32 tensor in the device's memory, which the
        launch reads when it runs (a graph then takes other rows at every replay).
    out: From router.outputs(n), n >= B.

Raises:
    RuntimeError: The router is on the CPU, or the launch failed.
    ValueError: Logits on another device, another shape, a row named twice.
)";

inline constexpr const char* kWait =
    R"(wait(out): waits for the device and fills the outputs of the last launch that wrote them.

Args:
    out: Outputs of a launch() of this router, or of a graph that holds one.

Raises:
    ValueError: No launch of this router has written them.
)";

inline constexpr const char* kDecide =
    R"(decide(model, rows, out): continues rows of route="manual" after their glimpse.

Args:
    rows: Rows whose phase is AWAIT_DECISION; for "large" also GLIMPSE, so that a step that was
        rewound is written by the large model at once (its entropy is NaN then).
    model: "small" commits the token selected from the glimpse; "large" discards it.
    out: As in step(); statistics other than entropy and logprob are NaN.

Raises:
    ValueError: A row with no decision to make, or named twice.
    IndexError: A row that is not open.
    RuntimeError: Another thread than the router's.
)";

inline constexpr const char* kState = R"(Counters of a sequence, as a dict.

phase, position (generated tokens, forced ones included), step_index, room (as in the outputs),
step_tokens, think_tokens, answer_tokens, step_logprob and step_entropy (sums over the running step, nats; 0 in
the answer), automaton, seed, substream, threshold.

Args:
    row: An open row.

Raises:
    IndexError: The row is not open.
)";

inline constexpr const char* kAttach = R"(Makes the calling thread the owner of the router.

Raises:
    RuntimeError: The owner is in a call.
)";

}  // namespace glimprouter::bindings::docs
