"""Markers of several tokens, and where a prompt leaves a sequence; against plain string search."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glimprouter as gr

# Special tokens have no bytes; the others are pieces of text, so that a marker is split many ways.
SPECIALS = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<eos>")
PIECES = ("a", "an", "analysis", "ana", "lysis", "fin", "final", "al", "x", " ", "\n", "\n\n", "i")
TEXTS = (*SPECIALS, *PIECES)
BYTES = [None] * len(SPECIALS) + [piece.encode() for piece in PIECES]
ID = {text: index for index, text in enumerate(TEXTS)}
EOS = ID["<eos>"]
OPEN = [ID["<|channel|>"], ID["analysis"], ID["<|message|>"]]
CLOSE = [ID["<|channel|>"], ID["final"], ID["<|message|>"]]
FORCED = [ID["<|end|>"], ID["<|start|>"], *CLOSE]
OPEN_TEXT, CLOSE_TEXT = ("".join(TEXTS[token] for token in ids) for ids in (OPEN, CLOSE))


def boundary() -> gr.StepBoundary:
    return gr.StepBoundary(
        BYTES,
        eos_ids=[EOS],
        close_ids=FORCED,
        think_start_markers=[OPEN],
        think_end_markers=[CLOSE],
    )


def ids_of(text: str) -> list[int]:
    """The longest piece first."""
    ids = []
    while text:
        piece = max((p for p in TEXTS if text.startswith(p)), key=len)
        ids.append(ID[piece])
        text = text.removeprefix(piece)
    return ids


def logits_for(token: int) -> np.ndarray:
    row = np.full((1, len(TEXTS)), -20.0, np.float32)
    row[0, token] = 20.0
    return row


def written(ids: list[int], **options: object) -> tuple[list[int], list[int]]:
    """Plays tokens through a router that leaves all to the small model; phases and decisions."""
    base = {"threshold": 5.0, "temperature": 0.0, "repetition_guard": False}
    router = gr.StepRouter(boundary(), gr.RouterConfig(**{**base, **options}))
    row = router.open()
    outputs = router.outputs(1)
    phases, routes = [], []
    for token in ids:
        model = "small" if router.phase(row) != gr.Phase.ANSWER else "large"
        router.step(model, logits_for(token), [row], outputs)
        assert outputs.token[0] == token
        phases.append(int(outputs.phase[0]))
        routes.append(int(outputs.route[0]))
    return phases, routes


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, len(TEXTS) - 2), max_size=24))
def test_thinking_ends_where_the_marker_ends(ids: list[int]) -> None:
    """However its text is split; wherever it stands; and nowhere else."""
    state, ends = 0, []
    for index, token in enumerate(ids):
        if boundary_.ends_thinking(token, state):
            ends.append(index)
        state, _ = boundary_.effect(state, token)
    # Special tokens are characters that no text has.
    symbols = {name: chr(0xE000 + index) for index, name in enumerate(SPECIALS)}
    marker = "".join(symbols.get(TEXTS[token], TEXTS[token]) for token in CLOSE)
    text, want = "", []
    for index, token in enumerate(ids):
        before = len(text)
        text += symbols.get(TEXTS[token], TEXTS[token])
        found = [at for at in range(before + 1, len(text) + 1) if text[:at].endswith(marker)]
        want += [index] * bool(found)
    assert ends == want


boundary_ = boundary()


def test_the_marker_that_opens_is_no_step() -> None:
    """The model writes it itself: no token of it is decided; the first word behind it is."""
    ids = ids_of(OPEN_TEXT + "x\n\nanx\n\n" + "<|end|><|start|>" + CLOSE_TEXT + "x")
    phases, routes = written(ids)
    decided = [TEXTS[token] for token, route in zip(ids, routes, strict=True) if route]
    assert decided == ["x", "an", "<|end|>"]
    assert phases[ids.index(ID["x"])] == gr.Phase.SMALL_STEP
    answer = len(ids) - 2
    assert phases[answer] == gr.Phase.ANSWER
    assert gr.Phase.ANSWER not in phases[:answer]


def test_a_text_that_only_begins_like_a_marker_is_a_step() -> None:
    """The special token is waited for; what follows it decides."""
    ids = ids_of("<|channel|>anx\n\nx")
    _, routes = written(ids)
    assert [bool(route) for route in routes] == [False, False, True, False, True]


def test_forced_close_writes_the_ids_of_the_format() -> None:
    router = gr.StepRouter(
        boundary(), gr.RouterConfig(max_think_tokens=2, temperature=0.0, threshold=9.0)
    )
    row = router.open()
    outputs = router.outputs(1)
    for _ in range(2):
        router.step("small", logits_for(ID["x"]), [row], outputs)
    assert outputs.forced[0] == len(FORCED) == router.position(row) - 2
    assert outputs.phase[0] == gr.Phase.ANSWER


HEADER = "<|start|>an"
PROMPTS = {
    "not begun": (HEADER, (False, False)),
    "open": (HEADER + OPEN_TEXT, (False, False)),
    "open, white space": (HEADER + OPEN_TEXT + "\n", (False, False)),
    "within a step": (HEADER + OPEN_TEXT + "x", (False, True)),
    "behind a delimiter": (HEADER + OPEN_TEXT + "x\n\n", (False, False)),
    "within the second step": (HEADER + OPEN_TEXT + "x\n\nx ", (False, True)),
    "closed": (HEADER + OPEN_TEXT + "x<|end|><|start|>an" + CLOSE_TEXT, (True, False)),
    "closed, white space": (HEADER + OPEN_TEXT + CLOSE_TEXT + "\n\n", (True, False)),
    "an earlier turn was closed": (
        HEADER + OPEN_TEXT + "x" + CLOSE_TEXT + "x<eos>" + HEADER,
        (False, False),
    ),
    "a user writes the text of a marker": ("x" + "final" + "<eos>" + HEADER, (False, False)),
    "nothing": ("", (False, False)),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_where_a_prompt_leaves_off(name: str) -> None:
    text, (answering, in_step) = PROMPTS[name]
    start = boundary().read_prompt(ids_of(text))
    assert (start.answering, start.in_step) == (answering, in_step)


def test_a_sequence_goes_on_from_there() -> None:
    """In the answer; or within a step: undecided, and half of a delimiter counts."""
    router = gr.StepRouter(boundary(), gr.RouterConfig(temperature=0.0, threshold=9.0))
    outputs = router.outputs(1)
    closed = router.open(start=router.boundary.read_prompt(ids_of(PROMPTS["closed"][0])))
    assert router.phase(closed) == gr.Phase.ANSWER
    assert router.pending("large").tolist() == [closed]
    router.step("large", logits_for(ID["x"]), [closed], outputs)
    router.rewind(closed, 1)
    assert router.phase(closed) == gr.Phase.ANSWER
    assert router.phase(router.load(router.save(closed))) == gr.Phase.ANSWER
    half = router.open(start=router.boundary.read_prompt(ids_of(HEADER + OPEN_TEXT + "x\n")))
    assert router.phase(half) == gr.Phase.SMALL_STEP
    router.step("small", logits_for(ID["\n"]), [half], outputs)
    assert outputs.end_reason[0] == gr.EndReason.DELIMITER
    assert outputs.route[0] == 0
    router.rewind(half, 1)
    assert router.phase(half) == gr.Phase.SMALL_STEP


def test_copies_keep_the_markers() -> None:
    for twin in (copy.deepcopy(boundary_), pickle.loads(pickle.dumps(boundary_))):
        assert twin.think_end_markers == [CLOSE]
        assert twin.read_prompt(ids_of(PROMPTS["closed"][0])).answering


BAD = {
    "empty marker": ({"think_end_markers": [[]]}, "think_end_markers holds an empty marker"),
    "foreign id": ({"think_start_markers": [[99]]}, "think_start_markers holds 99"),
    "too long": ({"think_end_markers": [[ID["analysis"]] * 16]}, "at most 126 are supported"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_markers(name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        gr.StepBoundary(BYTES, **options)


def test_bad_prompts_and_starts() -> None:
    with pytest.raises(ValueError, match="the prompt holds 99, outside the vocabulary"):
        boundary_.read_prompt([99])
    router = gr.StepRouter(boundary_, gr.RouterConfig(max_answer_tokens=0))
    with pytest.raises(ValueError, match="max_answer_tokens is 0, so there is nothing to write"):
        router.open(start=gr.SequenceStart(answering=True))
    with pytest.raises(ValueError, match="of another boundary"):
        router.open(start=gr.SequenceStart(in_step=True, automaton=250))
    assert router.rows.tolist() == []


def unlike_boundaries() -> tuple[gr.StepBoundary, gr.StepBoundary]:
    """Bytes in both; markers of thinking are one id of the small model, bytes of the large one."""
    written: list[bytes | None] = [bytes([byte]) for byte in range(256)]
    close = [*b"\n", 257, *b"\n\n"]
    small = gr.StepBoundary([*written, None, None, None], ["\n\n"], [256], [257], [258], close)
    large = gr.StepBoundary(
        [*written, None],
        ["\n\n"],
        [],
        [],
        [256],
        [*b"\n</think>\n\n"],
        think_start_markers=[list(b"<think>")],
        think_end_markers=[list(b"</think>")],
    )
    return small, large


def written_by(router: gr.StepRouter, row: int, model: str, token: int) -> gr.StepOutputs:
    """One greedy token of a model that is certain of it."""
    out = router.outputs(1)
    logits = np.zeros((1, 259 if model == "small" else 257), np.float32)
    logits[0, token] = 60.0
    router.step(model, logits, [row], out)
    return out


@pytest.mark.parametrize("before", list(b"a<\n/"))
def test_models_with_unlike_markers_take_over_from_each_other(before: int) -> None:
    """Whatever the large model had begun, the small one's end of thinking is one."""
    router = gr.StepRouter(
        unlike_boundaries()[0],
        gr.RouterConfig(temperature=0.0, large_tokens=1, threshold=0.0, comparison=">="),
        unlike_boundaries()[1],
        max_sequences=3,
    )
    row = router.open()
    written_by(router, row, "small", ord("x"))  # the glimpse, which the large model takes over
    written_by(router, row, "large", before)
    there = router.load(router.save(row))
    for each in (row, there):
        if router.phase(each) == gr.Phase.GLIMPSE:  # behind white space: no step has begun
            out = written_by(router, each, "small", 257)
        else:
            assert router.phase(each) == gr.Phase.SMALL_STEP
            out = written_by(router, each, "small", 257)
        assert (out.end_reason[0], out.phase[0]) == (gr.EndReason.THINK_END, gr.Phase.ANSWER)
        for token in b"ab":
            assert written_by(router, each, "large", token).phase[0] == gr.Phase.ANSWER
        assert written_by(router, each, "large", 256).end_reason[0] == gr.EndReason.EOS


@pytest.mark.parametrize("answer_model", ["small", "large"])
def test_the_answer_is_read_with_the_tables_of_its_model(answer_model: str) -> None:
    """Also behind a marker of several tokens, which leaves a state that the other lacks."""
    small, large = unlike_boundaries()
    config = gr.RouterConfig(temperature=0.0, route="large", answer_model=answer_model)  # type: ignore[arg-type]
    router = gr.StepRouter(small, config, large, max_sequences=1)
    row = router.open()
    for token in b"a.</think>":
        out = written_by(router, row, "large", token)
    assert out.end_reason[0] == gr.EndReason.THINK_END
    for token in b"ab\n\nc":
        assert written_by(router, row, answer_model, token).phase[0] == gr.Phase.ANSWER
    eos = {"small": 258, "large": 256}[answer_model]
    assert written_by(router, row, answer_model, eos).end_reason[0] == gr.EndReason.EOS
    assert router.state(row)["automaton"] < 6


def test_a_delimiter_of_both_models_ends_a_step() -> None:
    small, large = unlike_boundaries()
    config = gr.RouterConfig(temperature=0.0, large_tokens=2, threshold=0.0, comparison=">=")
    router = gr.StepRouter(small, config, large, max_sequences=1)
    row = router.open()
    written_by(router, row, "small", ord("x"))
    for token in b"a\n":
        written_by(router, row, "large", token)
    out = written_by(router, row, "small", ord("\n"))
    assert out.end_reason[0] == gr.EndReason.DELIMITER
