"""The gate's rule against the router's, on the same rows of logits; no engine, no vLLM."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import glimprouter as gr
from glimprouter.glimpse import Status
from glimprouter.vllm.gate.rows import Boundaries, leave_one_token
from glimprouter.vllm.protocol import (
    PROTOCOL,
    BoundarySpec,
    GateOptions,
    Written,
    fingerprint,
    meaning_of,
    read_greeting,
    value_of,
)
from hf_pairs import BLANK_LINE, DOT_BLANK_LINE, END_THINK, EOS, NEWLINE, THINK, TOKENIZER

VOCABULARY = len(TOKENIZER)
SPEC = BoundarySpec("<think>", "</think>", None, (EOS,))
BOUNDARY = SPEC.boundary(TOKENIZER)
HANDOFF = VOCABULARY - 3
ROUTER = {"max_think_tokens": 400, "repetition_guard": False, "max_step_tokens": 9}


def rows_of_logits(count: int, seed: int, width: int = VOCABULARY) -> torch.Tensor:
    """Rows between flat and steep, where what ends steps and thinking comes often enough."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator)
    rows *= torch.rand(count, 1, generator=generator) * 4.0
    rows[:, [BLANK_LINE, DOT_BLANK_LINE, NEWLINE]] += 3.0
    rows[:, [THINK, END_THINK, EOS]] -= torch.tensor([0.0, -1.0, 1.0])
    rows[:, HANDOFF] = -90.0  # what comes of it where it is drawn has a test of its own
    return rows


def by_router(rows: torch.Tensor, seed: int, **config: Any) -> tuple[list[Written], bool]:
    """What the gate of a small model must say of rows: by StepRouter, up to a turn's end."""
    router = gr.StepRouter(BOUNDARY, gr.RouterConfig(**{**ROUTER, **config}))
    row = router.open(seed=seed, substream=3)
    outputs = router.outputs(1)
    said = []
    for logits in rows:
        glimpsed = router.phase(row) == gr.Phase.GLIMPSE
        router.step("small", logits.numpy()[None], [row], outputs)
        entropy, token = float(outputs.entropy[0]), int(outputs.token[0])
        decided = glimpsed and outputs.route[0] != gr.Route.NONE
        if outputs.route[0] == gr.Route.LARGE:
            return [*said, Written(None, entropy, ended=True)], True
        phase = router.phase(row)
        over = phase in (gr.Phase.ANSWER, gr.Phase.DONE)
        said.append(Written(token, entropy if decided else None, ended=over and not decided))
        if over:
            return said, True
    return said, False


def by_gate(rows: torch.Tensor, options: GateOptions, *, told: bool = True) -> list[Written]:
    """What the gate says of rows, as an engine calls it."""
    row = Boundaries(TOKENIZER).row(options)
    written: list[int] = []
    said = []
    for logits in rows:
        own = logits[None].clone()
        row.follow(written)
        leave_one_token(own, [(0, row)])
        token = int(own.argmax())
        assert torch.isneginf(own).sum() == own.numel() - 1
        said.append(meaning_of(token, float(own[0, token]), options.handoff))
        written.append(token if told else -1)
        if token == options.handoff:
            break
    return said


def small_turn(seed: int, **config: Any) -> GateOptions:
    own = gr.RouterConfig(**{**ROUTER, **config})
    return GateOptions(
        SPEC,
        HANDOFF,
        decides=True,
        threshold=own.threshold,
        at_least=own.comparison == ">=",
        entropy_top_k=own.entropy_top_k,
        max_step_tokens=own.max_step_tokens,
        temperature=own.temperature,
        top_p=own.top_p,
        top_k=own.top_k,
        min_p=own.min_p,
        seed=seed,
        substream=3,
    )


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": 0.0},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 1.2, "top_k": 30, "min_p": 0.01},
        {"entropy_top_k": 5, "threshold": 1.4},
        {"max_step_tokens": 3},
        {"threshold": math.inf},
    ],
    ids=str,
)
@pytest.mark.parametrize("told", [True, False], ids=["ids", "ids still on the device"])
def test_a_small_turn_is_the_routers(config: dict[str, Any], told: bool) -> None:
    """Tokens, draws, glimpses, entropies to the bit, and where the turn ends."""
    config = {"threshold": 4.9, **config}
    turns = glimpses = handoffs = 0
    for seed in range(40):
        rows = rows_of_logits(60, seed)
        want, ended = by_router(rows, seed, **config)
        got = by_gate(rows, small_turn(seed, **config), told=told)
        assert got[: len(want)] == want
        if ended and len(got) > len(want):  # an end that was glimpsed: the next row says so
            assert got[len(want) :] == [Written(None, ended=True)]
        turns += ended
        glimpses += sum(own.entropy is not None for own in want)
        handoffs += want[-1].token is None
    assert turns >= 5
    assert glimpses > 80
    assert (handoffs > 0) == (config["threshold"] < math.inf)


@pytest.mark.parametrize("comparison", [">", ">="])
def test_the_threshold_itself(comparison: Any) -> None:
    """An entropy that equals tau is hard by ">=" only."""
    rows = rows_of_logits(1, 5)
    threshold = float(gr.glimpse(rows).entropy[0])
    (said,) = by_gate(rows, small_turn(0, temperature=0.0, threshold=threshold, comparison=">="))
    assert said == Written(None, threshold, ended=True)
    (said,) = by_gate(rows, small_turn(0, temperature=0.0, threshold=threshold))
    assert said.token is not None
    assert said.entropy == threshold


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_large_turn_is_one_step(temperature: float) -> None:
    """It ends with the token that ends the step, which comes along, whatever its state."""
    ends = set()
    for seed in range(40):
        rows = rows_of_logits(30, 100 + seed)
        rows[:, [BLANK_LINE, DOT_BLANK_LINE, NEWLINE]] -= 2.0
        rows[:, END_THINK] += 0.5
        options = GateOptions(
            SPEC,
            HANDOFF,
            one_step=True,
            max_step_tokens=9,
            begun=True,
            temperature=temperature,
            seed=seed,
            purpose=1,
        )
        said = by_gate(rows, options)
        router = gr.StepRouter(
            BOUNDARY, gr.RouterConfig(route="manual", temperature=temperature, top_p=1.0, **ROUTER)
        )
        row = router.open(seed=seed)
        router.step(
            "small", 90 * torch.eye(VOCABULARY)[65:66].numpy(), [row], out := router.outputs(1)
        )
        router.decide("large", [row], out)
        for own, logits in zip(said, rows, strict=False):
            assert router.phase(row) == gr.Phase.LARGE_STEP
            router.step("large", logits.numpy()[None], [row], out)
            assert own.token == out.token[0]
        assert said[-1].ended
        assert router.phase(row) != gr.Phase.LARGE_STEP
        ends.add(gr.EndReason(int(out.end_reason[0])))
    assert ends >= {gr.EndReason.DELIMITER, gr.EndReason.CAP, gr.EndReason.THINK_END}


def test_two_newlines_end_a_step() -> None:
    """A delimiter that two tokens make, which no list of stop tokens could know."""
    rows = torch.full((4, VOCABULARY), -20.0)
    for place, token in enumerate([65, NEWLINE, NEWLINE, 66]):
        rows[place, token] = 20.0
    said = by_gate(rows, GateOptions(SPEC, HANDOFF, one_step=True, begun=True))
    assert said == [Written(65), Written(NEWLINE), Written(NEWLINE, ended=True)]


def test_the_answer_ends_with_the_sequence_only() -> None:
    rows = torch.full((5, VOCABULARY), -20.0)
    for place, token in enumerate([65, BLANK_LINE, END_THINK, EOS, 66]):
        rows[place, token] = 20.0
    said = by_gate(rows, GateOptions(SPEC, HANDOFF, answering=True, decides=True))
    assert [own.token for own in said] == [65, BLANK_LINE, END_THINK, EOS]
    assert [own.ended for own in said] == [False, False, False, True]


def test_a_handoff_token_that_the_model_writes_is_no_handoff() -> None:
    rows = torch.full((1, VOCABULARY), -20.0)
    rows[0, HANDOFF] = 20.0
    (said,) = by_gate(rows, small_turn(0, temperature=0.0))
    assert said == Written(HANDOFF, ended=True)


@pytest.mark.parametrize(
    ("value", "status"),
    [(math.nan, Status.NAN), (math.inf, Status.POSITIVE_INFINITY), (-math.inf, Status.ALL_MASKED)],
)
@pytest.mark.parametrize("begun", [True, False])
def test_invalid_logits_end_the_request(value: float, status: Status, begun: bool) -> None:
    rows = rows_of_logits(1, 0)
    if status == Status.ALL_MASKED:
        rows[:] = value
    rows[0, 7] = value
    options = GateOptions(SPEC, HANDOFF, decides=True, begun=begun)
    (said,) = by_gate(rows, options)
    assert said == Written(None, status=status, ended=True)


def test_columns_behind_the_vocabulary_are_never_drawn() -> None:
    """Checkpoints have more output ids than tokens."""
    rows = rows_of_logits(20, 1, VOCABULARY + 5)
    rows[:, VOCABULARY:] = 50.0
    narrow = rows[:, :VOCABULARY].contiguous()
    options = small_turn(1, threshold=4.9)
    assert by_gate(rows, options) == by_gate(narrow, options)


def test_rows_of_a_batch_do_not_mix() -> None:
    """Requests with unlike options, and one without a gate, side by side and in any order."""
    boundaries = Boundaries(TOKENIZER)
    rows = rows_of_logits(7, 9)
    options = [
        small_turn(4, temperature=0.0, threshold=math.inf),
        small_turn(5, temperature=0.8, threshold=0.0),
        GateOptions(SPEC, HANDOFF, one_step=True, begun=True, temperature=1.1, seed=4),
        GateOptions(SPEC, HANDOFF, begun=True, temperature=1.1, seed=4, purpose=1),
        small_turn(5, entropy_top_k=3, threshold=math.inf),
        GateOptions(SPEC, HANDOFF, answering=True),
    ]
    alone = []
    for place, own in enumerate(options):
        logits = rows[place : place + 1].clone()
        leave_one_token(logits, [(0, boundaries.row(own))])
        alone.append(logits[0])
    entries = [(place, boundaries.row(own)) for place, own in enumerate(options)]
    for order in (entries, entries[::-1]):
        together = rows.clone()
        leave_one_token(together, order)
        assert torch.equal(together[6], rows[6])
        for place, logits in enumerate(alone):
            assert torch.equal(together[place], logits)
        full = rows[:6].clone()
        leave_one_token(full, order)
        assert torch.equal(full, together[:6])


def test_an_engine_may_compute_a_row_again() -> None:
    """A preempted request begins anew, and a row that counts for nothing changes nothing."""
    boundaries = Boundaries(TOKENIZER)
    options = small_turn(2, threshold=4.9)
    rows = rows_of_logits(12, 2)
    want = by_gate(rows, options)
    assert len(want) > 4
    row = boundaries.row(options)
    for count in (0, 1, 2, 3, 1, 2, 3, 4, 0, 4):
        row.follow([own.token for own in want[:count]])  # type: ignore[misc]
        noise = rows_of_logits(1, 77)
        leave_one_token(noise, [(0, row)])
        own = rows[count : count + 1].clone()
        leave_one_token(own, [(0, row)])
        token = int(own.argmax())
        assert meaning_of(token, float(own[0, token]), HANDOFF) == want[count]


def test_values_are_told_apart() -> None:
    """Every thing that a gate says has one value, which float32 and JSON keep."""
    said = [
        Written(5),
        Written(5, 0.0),
        Written(5, 21.9),
        Written(None, 0.0, ended=True),
        Written(None, 1.2345678, ended=True),
        Written(None, ended=True),
        Written(0, ended=True),
        Written((1 << 24) - 1025, ended=True),
        Written(HANDOFF, ended=True),
        *(Written(None, status=Status(code), ended=True) for code in (1, 2, 3)),
    ]
    for own in said:
        value = float(np.float32(value_of(own)))
        token = HANDOFF if own.ended or own.token is None else own.token
        back = meaning_of(token, value, HANDOFF)
        if own.entropy is not None:
            assert back.entropy == float(np.float32(own.entropy))
            own = Written(own.token, back.entropy, ended=own.ended)
        assert back == own


@pytest.mark.parametrize("value", [-1.5, -math.inf, math.nan, 65.0, 300.0])
def test_what_no_gate_says_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="--logits-processors"):
        meaning_of(5, value, HANDOFF)


def test_a_greeting() -> None:
    hello = GateOptions(SPEC, HANDOFF, hello=fingerprint(BOUNDARY))
    for known, wrong in ((fingerprint(BOUNDARY), None), ("another", "tokenizer")):
        row = Boundaries(TOKENIZER).row(GateOptions(SPEC, HANDOFF, hello=known) if wrong else hello)
        logits = rows_of_logits(1, 0)
        leave_one_token(logits, [(0, row)])
        assert int(logits.argmax()) == HANDOFF
        heard = read_greeting(HANDOFF, float(logits[0, HANDOFF]), HANDOFF)
        assert heard is None if wrong is None else wrong in str(heard)
    assert "no gate" in str(read_greeting(65, -3.0, HANDOFF))
    assert "--logprobs-mode" in str(read_greeting(HANDOFF, 0.0, HANDOFF))
    assert "version" in str(read_greeting(HANDOFF, 256.0 + 7, HANDOFF))


def test_options_as_json() -> None:
    options = small_turn(2**63, threshold=math.inf, entropy_top_k=20)
    assert GateOptions.from_json(options.to_json()) == options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "RoutedEngines"),
        ("nonsense", "RoutedEngines"),
        ("[]", "RoutedEngines"),
        ("{}", "version"),
        ('{"protocol": 99}', f"version {PROTOCOL}"),
        (f'{{"protocol": {PROTOCOL}}}', "malformed"),
        (GateOptions(SPEC, HANDOFF).to_json().replace('"top_p":1.0', '"top_p":7.0'), "top_p"),
        (GateOptions(SPEC, HANDOFF).to_json().replace('"handoff"', '"hand"'), "malformed"),
        (GateOptions(SPEC, -1).to_json(), "handoff"),
        (GateOptions(SPEC, HANDOFF, purpose=2**32).to_json(), "purpose"),
    ],
)
def test_bad_options_are_refused(text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GateOptions.from_json(text)


def test_boundaries_are_kept_few() -> None:
    boundaries = Boundaries(TOKENIZER)
    for end in range(20):
        boundaries.row(GateOptions(BoundarySpec("<think>", "</think>", None, (end,)), HANDOFF))
    assert len(boundaries._made) <= 8
