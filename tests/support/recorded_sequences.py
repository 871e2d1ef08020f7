"""Sequences that go on by recorded logits, each with options of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import glimprouter as gr
from device_under_test import DEVICE, on_device
from reference.containers import bits
from reference.rows import normal_rows

VOCABULARY = 320
SEQUENCES = 24
RECORDED = 97  # distinct rows of logits; prime, so that positions and sequences mix
FIELDS = (
    *("token", "status", "route", "phase", "end_reason", "step_index", "forced"),
    "room",
    *("entropy", "logprob", "logsumexp", "max_prob", "margin", "varentropy", "logprobs"),
)
NEWLINE, SENTENCE_END, THINK_END, EOS = (
    VOCABULARY - 4,
    VOCABULARY - 3,
    VOCABULARY - 2,
    VOCABULARY - 1,
)

# How a set of rows becomes the batches of one round.
Batches = Callable[[NDArray[np.int32]], Iterator[NDArray[np.int32]]]


def make_boundary() -> gr.StepBoundary:
    token_bytes: list[bytes | None] = [b"x%d" % token for token in range(VOCABULARY - 4)]
    return gr.StepBoundary(
        [*token_bytes, b"\n", b".\n\n", None, None],
        think_end_ids=[THINK_END],
        eos_ids=[EOS],
        close_ids=[NEWLINE, THINK_END, NEWLINE, NEWLINE],
    )


def recorded_logits(model: str) -> NDArray[np.float32]:
    """Rows whose entropy lies on both sides of 1, with likely delimiters, and a few bad rows."""
    seed = 1 if model == "small" else 2
    rows = normal_rows(RECORDED, VOCABULARY, seed)
    rows *= np.random.default_rng(seed).uniform(0.5, 5.0, (RECORDED, 1)).astype(np.float32)
    rows[::5, SENTENCE_END] = rows[::5].max(axis=1) + 1.0
    rows[3::7, NEWLINE] = rows[3::7].max(axis=1)
    rows[11::40, THINK_END] = rows[11::40].max(axis=1) + 2.0
    rows[:, EOS] = rows.max(axis=1) - 4.0
    rows[50, 7] = np.nan
    return rows


LOGITS = {model: recorded_logits(model) for model in ("small", "large")}


def open_sequences(router: gr.StepRouter, greedy: bool) -> NDArray[np.int32]:
    """Opens rows that differ in every option of a sequence."""
    rows = [
        router.open(
            seed=5,
            substream=index,
            temperature=0.0 if greedy or index % 6 == 5 else (0.6, 1.0, 1.4)[index % 3],
            top_p=(0.95, 1.0)[index % 2],
            top_k=(0, 40)[index // 2 % 2],
            threshold=(0.5, 1.0, 2.0)[index % 3],
            entropy_top_k=None if index % 4 else 20,
            comparison=(">", ">=")[index % 2],
            first_steps_large=int(index % 3 == 2),
            max_step_tokens=4 + index % 5,
            max_think_tokens=20 + index,
            max_answer_tokens=5 + index % 7,
            answer_model=("large", "small")[index // 5 % 2],
        )
        for index in range(SEQUENCES)
    ]
    return np.array(rows, dtype=np.int32)


def run(batches: Batches, greedy: bool) -> dict[str, list[bytes]]:
    """Runs every sequence to its end; returns each field's bytes by sequence, in order of time."""
    router = gr.StepRouter(make_boundary(), max_sequences=SEQUENCES, device=DEVICE)
    rows = open_sequences(router, greedy)
    sequence_of = {int(row): index for index, row in enumerate(rows)}
    out = router.outputs(SEQUENCES, fields=gr.OutputField.ALL, logprob_ids=[0, EOS, SENTENCE_END])
    history: dict[str, list[bytes]] = {field: [b""] * SEQUENCES for field in FIELDS}
    seen = np.zeros(SEQUENCES, dtype=np.int64)  # calls of a sequence so far choose its logits
    for _ in range(400):
        if all(router.phase(int(row)) == gr.Phase.DONE for row in rows):
            return history
        for model in ("small", "large"):
            for batch in batches(np.asarray(router.pending(model))):
                sequences = [sequence_of[int(row)] for row in batch]
                places = (seen[sequences] * 7 + np.array(sequences) * 13) % RECORDED
                router.step(model, on_device(LOGITS[model][places]), batch, out)
                seen[sequences] += 1
                for field in FIELDS:
                    values: Any = getattr(out, field)
                    for entry, sequence in enumerate(sequences):
                        history[field][sequence] += bits(values[entry]).tobytes()
    raise AssertionError("a sequence did not end")


def whole(rows: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    if rows.size:
        yield rows
