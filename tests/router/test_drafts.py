"""Drafts change nothing: verified, a sequence writes what it writes step by step, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import glimprouter as gr
from device_under_test import DEVICE, on_device
from recorded_sequences import (
    EOS,
    FIELDS,
    LOGITS,
    RECORDED,
    SENTENCE_END,
    SEQUENCES,
    make_boundary,
    open_sequences,
    run,
    whole,
)
from reference.containers import bits

pytestmark = pytest.mark.device

MOST = 6  # drafts of a row


class Drafting:
    """Drafts a part of what the sequences write anyway, and now and then something else."""

    def __init__(self, tokens: list[list[int]], seed: int) -> None:
        """Takes what each call says that each sequence writes: -1 for a decision."""
        self.tokens = tokens
        self.random = np.random.default_rng(seed)

    def of(self, sequence: int, call: int, room: int) -> list[int]:
        """Drafts for what comes at a sequence's call of this number, fewer than its room."""
        most = int(self.random.integers(0, min(MOST, room - 1) + 1))
        drafts = []
        for token in self.tokens[sequence][call : call + most]:
            wrong = token < 0 or self.random.random() < 0.15
            drafts.append(int(self.random.integers(0, SENTENCE_END)) if wrong else token)
        return drafts


def run_with_drafts(drafting: Drafting, greedy: bool) -> tuple[dict[str, list[bytes]], int]:
    """As :func:`run`; also how many drafts held."""
    router = gr.StepRouter(make_boundary(), max_sequences=SEQUENCES, device=DEVICE)
    rows = open_sequences(router, greedy)
    sequence_of = {int(row): index for index, row in enumerate(rows)}
    most = SEQUENCES * (MOST + 1)
    out = router.outputs(most, fields=gr.OutputField.ALL, logprob_ids=[0, EOS, SENTENCE_END])
    history: dict[str, list[bytes]] = {field: [b""] * SEQUENCES for field in FIELDS}
    seen = np.zeros(SEQUENCES, dtype=np.int64)
    room = np.ones(SEQUENCES, dtype=np.int64)
    held = 0
    for _ in range(400):
        if all(router.phase(int(row)) == gr.Phase.DONE for row in rows):
            return history, held
        for model in ("small", "large"):
            batch = router.pending(model)
            if not batch.size:
                continue
            sequences = [sequence_of[int(row)] for row in batch]
            drafts = [drafting.of(s, int(seen[s]), int(room[s])) for s in sequences]
            owners = np.repeat(sequences, [len(own) + 1 for own in drafts])
            places = [np.arange(len(own) + 1) for own in drafts]
            calls = np.repeat(seen[sequences], [len(own) for own in places])
            calls += np.concatenate(places)
            logits = LOGITS[model][(calls * 7 + owners * 13) % RECORDED]
            flat = [token for own in drafts for token in own]
            counts = [len(own) for own in drafts]
            taken = router.verify(model, on_device(logits), batch, counts, flat, out)
            reached = out.status[: len(owners)] != gr.Status.NOT_REACHED
            tokens = out.token[: len(owners)] >= 0
            assert [tokens[owners == s].sum() for s in sequences] == taken.tolist()
            held += int(reached.sum()) - len(sequences)
            for field in FIELDS:
                values: Any = getattr(out, field)
                for entry in np.flatnonzero(reached):
                    history[field][owners[entry]] += bits(values[entry]).tobytes()
            for entry in np.flatnonzero(~reached):
                assert out.token[entry] == -1
                assert np.isnan(out.entropy[entry])
                assert out.logprobs is not None
                assert np.isnan(out.logprobs[entry]).all()
            for entry, sequence in enumerate(owners):
                seen[sequence] += reached[entry]
                room[sequence] = max(1, out.room[entry])
    raise AssertionError("a sequence did not end")


def written(history: dict[str, list[bytes]]) -> list[list[int]]:
    return [np.frombuffer(tokens, np.int32).tolist() for tokens in history["token"]]


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_sequence_writes_what_it_writes_without_drafts(greedy: bool, seed: int) -> None:
    want = run(whole, greedy)
    got, held = run_with_drafts(Drafting(written(want), seed), greedy)
    assert held > 200
    for field in FIELDS:
        for sequence in range(SEQUENCES):
            assert got[field][sequence] == want[field][sequence], f"{field} of {sequence}"


def logits_of(*tokens: int) -> NDArray[np.float32]:
    rows = np.zeros((len(tokens), len(LOGITS["small"][0])), np.float32)
    rows[np.arange(len(tokens)), tokens] = 9.0
    return rows


@pytest.fixture
def router() -> gr.StepRouter:
    config = gr.RouterConfig(route="large", max_step_tokens=4, max_think_tokens=9, temperature=0.8)
    return gr.StepRouter(make_boundary(), config, max_sequences=4, device=DEVICE)


def test_equal_distributions_draft_what_is_taken_small_case(router: gr.StepRouter) -> None:
    """The draft is drawn by the key of the model that will verify it."""
    flat = np.zeros((1, logits_of(0).shape[1]), np.float32)
    drafted, written = router.open(seed=4), router.open(seed=4)
    out = router.outputs(8)
    drafts: list[int] = []
    for _ in range(5):
        router.draft("small", on_device(flat), [drafted], [len(drafts)], drafts, out)
        drafts.append(int(out.token[0]))
    logits = on_device(np.repeat(flat, 6, axis=0))
    assert router.verify("large", logits, [drafted], [5], drafts, out).tolist() == [6]
    tokens = out.token[:6].tolist()
    assert tokens[:5] == drafts
    for token in tokens:
        router.step("large", on_device(flat), [written], out)
        assert out.token[0] == token
    assert len(set(drafts)) > 1


def test_room_counts_down_to_the_forced_end(router: gr.StepRouter) -> None:
    row = router.open(temperature=0.0)
    out = router.outputs(9)
    router.verify("large", on_device(logits_of(1, 2, 3)), [row], [2], [1, 2], out)
    assert out.room[:3].tolist() == [8, 7, 6]
    with pytest.raises(ValueError, match="takes at most 6 tokens more from the large model, got 6"):
        router.verify("large", on_device(logits_of(*range(7))), [row], [6], list(range(6)), out)
    taken = router.verify("large", on_device(logits_of(*range(6))), [row], [5], list(range(5)), out)
    assert taken.tolist() == [6]
    assert out.end_reason[5] == gr.EndReason.BUDGET
    assert router.phase(row) == gr.Phase.ANSWER


def test_a_fault_leaves_what_came_before_it_small_case(router: gr.StepRouter) -> None:
    row = router.open(temperature=0.0)
    out = router.outputs(4)
    logits = logits_of(1, 2, 3, 4)
    logits[2, 7] = np.nan
    assert router.verify("large", on_device(logits), [row], [3], [1, 2, 3], out).tolist() == [2]
    wanted = [gr.Status.OK, gr.Status.OK, gr.Status.NAN, gr.Status.NOT_REACHED]
    assert out.status[:4].tolist() == wanted
    assert router.position(row) == 2
    logits = logits_of(1, 9, 3, 4)
    logits[3, 7] = np.nan  # of a row that is not reached: no fault
    other = router.open(temperature=0.0)
    assert router.verify("large", on_device(logits), [other], [3], [1, 2, 3], out).tolist() == [2]
    assert out.status[2:4].tolist() == [gr.Status.NOT_REACHED] * 2
