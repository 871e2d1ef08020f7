"""Thinking, content and stops do not depend on how the text was cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from glimprouter.serve.pair import Markers
from glimprouter.serve.texts import StopFinder, TextSplitter

THINK = Markers(("<think>",), ("</think>",))
HARMONY = Markers(
    ("<|channel|>analysis<|message|>",),
    ("<|end|><|start|>assistant<|channel|>final<|message|>", "<|channel|>final<|message|>"),
)
# Letters that markers and stops are made of, so that near misses come often.
TEXT = st.text("ab<>/think \n", max_size=40)
STOPS = st.lists(st.text("ab< \n", min_size=1, max_size=3), max_size=3)


def cut(text: str, places: list[int]) -> list[str]:
    """Pieces of a text, some of them empty."""
    ends = sorted({place % (len(text) + 1) for place in places} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def stopped_by_hand(text: str, stops: list[str]) -> tuple[str, bool]:
    """Up to the stop that is complete first; of two that end together the longer one."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(TEXT, STOPS, st.lists(st.integers(0, 99), max_size=8))
def test_stops_across_pieces(text: str, stops: list[str], places: list[int]) -> None:
    finder = StopFinder(stops)
    given_out = [finder.push(piece) for piece in cut(text, places)]
    whole, stopped = stopped_by_hand(text.lstrip(), stops)
    assert finder.stopped == stopped
    assert "".join([*given_out, finder.flush()]) == (whole if stopped else whole.rstrip())


@given(TEXT, STOPS, st.lists(st.integers(0, 99), max_size=8))
def test_stops_in_raw_text(text: str, stops: list[str], places: list[int]) -> None:
    finder = StopFinder(stops, raw=True)
    given_out = [finder.push(piece) for piece in cut(text, places)]
    whole, stopped = stopped_by_hand(text, stops)
    assert ("".join([*given_out, finder.flush()]), finder.stopped) == (whole, stopped)


@given(
    st.booleans(),
    TEXT.filter(lambda text: "</think>" not in text and not text.lstrip().startswith("<think>")),
    TEXT,
    st.lists(st.integers(0, 99), max_size=8),
    st.lists(st.integers(0, 99), max_size=8),
)
def test_thinking_and_content(
    opened: bool, thought: str, answer: str, first: list[int], second: list[int]
) -> None:
    """The pieces of the thinking end with its marker; whoever wrote that says so."""
    splitter = TextSplitter(THINK, [])
    marked = f"{'<think>' if opened else ''}{thought}</think>"
    deltas = [splitter.push(piece) for piece in cut(marked, first)]
    deltas.append(splitter.answer())
    deltas += [splitter.push(piece) for piece in cut(answer, second)]
    deltas.append(splitter.flush())
    assert "".join(delta.reasoning for delta in deltas) == thought.strip()
    assert "".join(delta.content for delta in deltas) == answer.strip()


def test_white_space_behind_the_marker_is_neither() -> None:
    splitter = TextSplitter(THINK, [])
    parts = [splitter.push("Hm.\n\n</think>\n\n"), splitter.answer(), splitter.push("\n 58 ")]
    parts.append(splitter.flush())
    assert "".join(part.reasoning for part in parts) == "Hm."
    assert "".join(part.content for part in parts) == "58"


def test_thinking_that_never_ends() -> None:
    splitter = TextSplitter(THINK, ["x"])
    parts = [splitter.push("Hm. </thi"), splitter.flush()]
    assert "".join(part.reasoning for part in parts) == "Hm. </thi"
    assert not any(part.content for part in parts)


def test_special_tokens_are_not_given_out() -> None:
    splitter = TextSplitter(HARMONY, [])
    pieces = ["<|channel|>", "analysis", "<|message|>", "a <|end|> b ", "<|end|>", "<|start|>"]
    pieces += ["assistant", "<|channel|>", "final", "<|message|>"]
    special = [piece if piece.startswith("<|") else "" for piece in pieces]
    parts = [splitter.push(*pair) for pair in zip(pieces, special, strict=True)]
    parts.append(splitter.answer())
    parts += [
        splitter.push("58"),
        splitter.push("\N{REPLACEMENT CHARACTER}<|return|>", "<|return|>"),
    ]
    parts.append(splitter.flush())
    assert "".join(part.reasoning for part in parts) == "a <|end|> b"  # text, not the token
    assert "".join(part.content for part in parts) == "58\N{REPLACEMENT CHARACTER}"


def test_a_special_token_within_the_thinking() -> None:
    splitter = TextSplitter(THINK, [])
    parts = [splitter.push("a"), splitter.push("<|pad|>", "<|pad|>"), splitter.push("b")]
    parts += [splitter.push("</think>"), splitter.answer()]
    assert "".join(part.reasoning for part in parts) == "ab"


def test_a_pair_that_does_not_think_has_content_only() -> None:
    splitter = TextSplitter(None, [])
    parts = [splitter.push("One.</think>"), splitter.answer(), splitter.flush()]
    assert [part.content for part in parts] == ["One.</think>", "", ""]
