"""StepBoundary against a plain search over the decoded bytes, on made-up vocabularies."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import operator
import pickle
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glimprouter as gr

INTERRUPTION = b"\xff"  # stands for a special token; not in any text of this file


def searched_boundaries(tokens: Sequence[bytes | None], delimiters: Sequence[str]) -> list[int]:
    """Indices of the tokens that end a step, by searching everything written so far.

    A step ends with the first token in which an occurrence of a delimiter ends, provided that the
    step has something other than white space by then.
    """
    ends = tuple(delimiter.encode() for delimiter in delimiters)
    text, step, found = b"", b"", []
    for index, token in enumerate(tokens):
        hit = False
        for byte in token or b"":
            text += bytes([byte])
            step += bytes([byte])
            hit |= text.endswith(ends) and bool(step.strip())
        if token is None:
            text += INTERRUPTION
        if hit:
            found.append(index)
            step = b""
    return found


def automaton_boundaries(boundary: gr.StepBoundary, ids: Sequence[int]) -> list[int]:
    """The same by the table, from its initial state."""
    state, found = 0, []
    for index, token in enumerate(ids):
        state, hit = boundary.effect(state, token)
        if hit:
            found.append(index)
    return found


BYTES: list[bytes | None] = [bytes([byte]) for byte in "a# \n\t.。é".encode()]
DELIMITER_SETS = [
    ("\n\n",),
    ("\n",),
    ("\n\n", "##"),
    ("###", "\n\n\n", "\n#"),
    ("a.", "\n\na", ".a"),
    ("。", "é\n"),
    (" \n \n", "\n\n"),
]
tokens = st.one_of(
    st.none(), st.text(alphabet="a# \n\t.。é", min_size=1, max_size=5).map(str.encode)
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[tuple[str, ...], list[bytes | None], list[int]]:
    """Delimiters, a vocabulary that can write them, and ids in it."""
    delimiters = draw(st.sampled_from(DELIMITER_SETS))
    vocabulary = BYTES + draw(st.lists(tokens, max_size=12))
    # Delimiters and line ends often, or nothing ever happens.
    vocabulary += [delimiter.encode() for delimiter in delimiters] + [b"\n"]
    ids = draw(st.lists(st.integers(0, len(vocabulary) - 1), max_size=60))
    return delimiters, vocabulary, ids


@settings(max_examples=400, deadline=None)
@given(streams())
def test_any_stream_equals_a_search(case: tuple[tuple[str, ...], list[bytes | None], list[int]]):
    delimiters, vocabulary, ids = case
    boundary = gr.StepBoundary(vocabulary, delimiters)
    expected = searched_boundaries([vocabulary[i] for i in ids], delimiters)
    assert automaton_boundaries(boundary, ids) == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ab.\n ", max_size=40), data=st.data())
def test_cutting_a_text_into_tokens_moves_no_boundary_by_more_than_a_token(
    text: str, data: st.DataObject
):
    """The first step ends where the text says, however it is cut."""
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(text) - 1, 1)))))
    pieces = [
        text[start:end].encode() for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)
    ]
    boundary = gr.StepBoundary([b"\n", *pieces], ("\n\n",))
    found = automaton_boundaries(boundary, range(1, len(pieces) + 1))
    match = re.search(r"[^ \n][ \n]*?\n\n", text)  # the first blank line behind any text
    assert bool(found) == bool(match)
    if match:
        lengths = [len(b"".join(pieces[: i + 1])) for i in range(len(pieces))]
        first = next(i for i, length in enumerate(lengths) if length >= match.end())
        assert found[0] == first


READABLE: dict[str, tuple[list[bytes | None], list[int]]] = {
    "merged": ([b"a", b".\n\n", b"b", b"c.\n\n"], [1, 3]),
    "split": ([b"a\n", b"\n", b"b", b"\n", b"\n"], [1, 4]),
    "run_on": ([b"a", b"\n\n\n", b"\n", b"\n\n", b"b", b"\n\n"], [1, 5]),
    "leading": ([b"\n\n", b"\n", b" ", b"a", b"\n\n"], [4]),
    "inside": ([b"a\n\nb", b"\n\n", b"c\n", b"\n"], [0, 3]),
    "interrupted": ([b"a\n", None, b"\n", b"\n"], [3]),
    "special_is_no_text": ([None, b"\n\n", b"a", None, b"\n\n"], [4]),
    "almost": ([b"a\n", b" \n", b"\t\n", b"b"], []),
}


@pytest.mark.parametrize("name", READABLE)
def test_blank_line(name: str):
    written, expected = READABLE[name]
    assert searched_boundaries(written, ("\n\n",)) == expected
    boundary = gr.StepBoundary([b"\n", *written])
    assert automaton_boundaries(boundary, range(1, len(written) + 1)) == expected


def test_attributes():
    boundary = gr.StepBoundary(
        [b"a", b"\n", None, None, None], ["\n\n", "a\n"], [2], [3], [3, 4], [1, 3]
    )
    assert boundary.vocab_size == 5
    assert boundary.delimiters == ("\n\n", "a\n")
    assert boundary.think_start_ids == [2]
    assert boundary.think_end_ids == [3]
    assert boundary.eos_ids == [3, 4]
    assert boundary.close_ids == [1, 3]
    assert boundary.num_states == 2 * len({"", "\n", "\n\n", "a", "a\n"})


def test_one_delimiter_need_not_be_wrapped():
    assert gr.StepBoundary([b"#"], "##").delimiters == ("##",)


def test_longest_delimiters():
    text = "x" * 125 + "\n"
    boundary = gr.StepBoundary([b"x", b"\n"], [text])
    assert automaton_boundaries(boundary, [0] * 130 + [1]) == [130]
    assert automaton_boundaries(boundary, [0] * 124 + [1]) == []


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no_vocabulary": ({"token_bytes": []}, ValueError, "vocabulary is empty"),
    "no_delimiter": ({"delimiters": ()}, ValueError, "no delimiter given"),
    "empty_delimiter": ({"delimiters": ("\n\n", "")}, ValueError, "a delimiter is empty"),
    "long_delimiter": ({"delimiters": ("x" * 127,)}, ValueError, "at most 126"),
    "never_written": ({"delimiters": ("#",)}, ValueError, "writes a delimiter"),
    "only_specials": ({"token_bytes": [None, None]}, ValueError, "writes a delimiter"),
    "text": ({"token_bytes": ["a", b"\n"]}, TypeError, "must hold bytes.*str"),
    "number": ({"token_bytes": [b"\n", 7]}, TypeError, "must hold bytes.*int"),
    "think_start": ({"think_start_ids": [2]}, ValueError, "think_start_ids holds 2"),
    "think_end": ({"think_end_ids": [-1]}, ValueError, "think_end_ids holds -1"),
    "eos": ({"eos_ids": [0, 5]}, ValueError, "eos_ids holds 5.*vocabulary of 2"),
    "close": ({"close_ids": [9]}, ValueError, "close_ids holds 9"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_argument(name: str):
    changed, error, message = ERRORS[name]
    arguments: dict[str, Any] = {"token_bytes": [b"a", b"\n"], **changed}
    with pytest.raises(error, match=message):
        gr.StepBoundary(**arguments)


def test_effect_checks_its_arguments():
    boundary = gr.StepBoundary([b"a", b"\n"])
    with pytest.raises(ValueError, match="token must lie in"):
        boundary.effect(0, 2)
    with pytest.raises(ValueError, match="state must lie in"):
        boundary.effect(boundary.num_states, 0)


def _tables(boundary: gr.StepBoundary) -> tuple[Any, ...]:
    """All that a boundary answers."""
    states, tokens = range(boundary.num_states), range(boundary.vocab_size)
    return (
        [boundary.effect(state, token) for state in states for token in tokens],
        [boundary.precedes_step(token) for token in tokens],
        boundary.delimiters,
        boundary.eos_ids,
        boundary.close_ids,
        boundary.think_start_ids,
        boundary.think_end_ids,
    )


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))]
)
def test_a_boundary_can_be_copied_and_pickled(copied: Any) -> None:
    boundary = gr.StepBoundary(
        [b"a", b"\n", b".\n\n", None, b" "], ("\n\n", ";"), [3], [3], eos_ids=[0], close_ids=[2]
    )
    twin = copied(boundary)
    assert twin is not boundary
    assert type(twin) is gr.StepBoundary
    assert _tables(twin) == _tables(boundary)
    routers = [gr.StepRouter(b, gr.RouterConfig(temperature=0.0)) for b in (boundary, twin)]
    assert routers[0].state(routers[0].open()) == routers[1].state(routers[1].open())


def test_a_boundary_reaches_another_process() -> None:
    boundary = gr.StepBoundary([b"a", b"\n\n"], close_ids=[1])
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        assert pool.submit(operator.attrgetter("close_ids"), boundary).result() == [1]
        assert _tables(pool.submit(copy.copy, boundary).result()) == _tables(boundary)
