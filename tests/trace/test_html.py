"""The page of a trace: well formed, self-contained, everything escaped.

The page is parsed as XML, which accepts no tag that is left open and no stray ``<`` or ``&``.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import glimprouter as gr
from glimprouter.trace.html import trace_to_html
from glimprouter.visible_text import neutralise
from trace_pages import Element, parsed, run_facts, with_class, words
from trace_samples import step, trace

# What a page may be made of: nothing that runs, loads or embeds.
TAGS = """
    html head meta title style body main h1 h2 p strong div span figure figcaption svg path text a
    table thead tbody tr th td dl dt dd
"""
ATTRIBUTES = """
    lang charset name content class role dir id scope data-unit viewBox aria-label aria-hidden d x y
    text-anchor transform href tabindex
"""


def assert_inert(page: str, root: Element) -> None:
    assert {element.tag for element in root.iter()} <= set(TAGS.split())
    assert {name for element in root.iter() for name in element.attrib} <= set(ATTRIBUTES.split())
    targets = {element.get("id") for element in root.iter() if element.get("id")}
    for link in root.iter("a"):
        assert link.attrib["href"].removeprefix("#") in targets
    (style,) = root.iter("style")
    assert not re.search(r"url|@import|expression|<", str(style.text))
    assert "http" not in page.replace(words(next(root.iter("main"))), "")


HARMFUL = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "</title></svg></td></table>",
    "\"'><a href='javascript:x'>",
    "&lt;&amp;&#x3c;&nbsp;",
    "<!-- --> ]]> <![CDATA[ <?xml",
    "\u202etxt.exe\u2066",
    "\x00\x1b[2J\x9b\r\x7f\ufffe\ufeff\u2028",
    "\ud800",
]
texts = st.text(max_size=20) | st.sampled_from(HARMFUL)
texts = st.lists(texts, max_size=3).map("".join)
entropies = st.none() | st.floats(-1.0, 20.0) | st.sampled_from([0.0, 1e308, -1e308])
thresholds = st.floats(0, 5) | st.sampled_from([math.inf, math.nan, 1e308, 0.0, 5e-324])
counts = st.integers(0, 2**40)
writers = st.sampled_from(["small", "large"])
steps = st.builds(
    gr.TraceStep,
    index=counts,
    model=writers,
    entropy=entropies,
    threshold=thresholds,
    text=texts,
    num_tokens=counts,
    seconds=st.floats(0, 1e9),
    end_reason=texts | st.just("cap"),
)
traces = st.builds(
    gr.Trace,
    prompt=st.none() | texts,
    seed=st.integers(0, 2**64 - 1),
    threshold=thresholds,
    think_limit=counts,
    steps=st.lists(steps, max_size=4),
    answer=texts,
    answer_model=writers,
    answer_tokens=counts,
    answer_seconds=st.floats(0, 1e9),
    total_tokens=counts,
    end_reason=texts | st.sampled_from(["eos", "interrupted", "error"]),
    error=st.none() | texts,
)


@settings(max_examples=300, deadline=None)
@given(traces, st.none() | texts)
@example(gr.Trace(prompt=HARMFUL[0], steps=[step(0, text="".join(HARMFUL))]), None)
def test_any_trace_makes_an_inert_page_with_all_its_text(chain: gr.Trace, note: str | None) -> None:
    """Escaping is right exactly if parsing gives the text back and no element came with it."""
    page = trace_to_html(chain, note=note)
    page.encode()
    root = parsed(page)
    assert_inert(page, root)
    assert page == neutralise(page), "no control, no override, no invisible character"
    shown = [words(cell.find("div[@dir='auto']")) for cell in with_class(root, "td", "words")]  # type: ignore[arg-type]
    wanted = [neutralise(s.text.strip("\n")) for s in chain.steps]
    assert shown == [text if text.strip() else "(empty)" for text in wanted]
    everything = words(root)
    for text in (chain.prompt, chain.answer, chain.error, note):
        visible = neutralise(text or "").strip("\n")
        assert not visible.strip() or visible in everything  # white space alone is "(empty)"
    marks = [m for m in with_class(root, "path", "mark") if m.find("title") is not None]
    assert [mark.get("class") for mark in marks] == [f"mark {s.model}" for s in chain.steps]


@pytest.mark.parametrize("count", [1, 2, 7, 500])
def test_steps_and_their_marks(count: int) -> None:
    chain = trace(count)
    root = parsed(trace_to_html(chain))
    rows = [row for row in root.iter("tr") if row.get("id")]
    assert [row.get("id") for row in rows] == [f"step-{i}" for i in range(count)]
    for row, written in zip(rows, chain.steps, strict=True):
        cells = [words(cell) for cell in row.findall("td")]
        entropy = f"{written.entropy:.3f}"
        assert cells[:5] == [
            f"{written.index}",
            written.model,
            entropy,
            f"{written.num_tokens}",
            "10.0",
        ]
        assert row[-1].get("class") == f"words {written.model}"
    titles = [words(title) for title in next(root.iter("figure")).iter("title")]
    assert titles[0] == "step 0, small: H 0.250 nats, 10 tokens"
    assert len(titles) == count
    assert len(with_class(root, "path", "tau")) == 1


def test_size_and_places_of_a_long_chain() -> None:
    """Marks are in the picture, apart in x, above tau exactly where the large model wrote."""
    page = trace_to_html(trace(500))
    assert len(page) < 700 * 500
    root = parsed(page)
    _, _, width, height = map(float, next(root.iter("svg")).attrib["viewBox"].split())
    (tau,) = with_class(root, "path", "tau")
    tau_y = float(re.findall(r"[\d.]+", tau.attrib["d"])[1])
    last = 0.0
    marks = [m for m in with_class(root, "path", "mark") if m.find("title") is not None]
    for mark in marks:
        x, y, radius = map(float, re.findall(r"[\d.]+", mark.attrib["d"])[:3])
        if mark.attrib["class"] == "mark small":  # a disc begins at its left end
            x += radius
        assert last < x < width
        assert 0 < y < height
        assert (y < tau_y) == (mark.attrib["class"] == "mark large")
        last = x


def table_rows(root: Element) -> list[list[str]]:
    table = next(root.iter("table"))
    return [[words(cell) for cell in row.iter("td")] for row in table.iter("tr")][1:]


def test_totals() -> None:
    assert table_rows(parsed(trace_to_html(trace(4)))) == [
        ["small", "3", "75.0 %", "34", "73.9 %", "0.03 s", "0.9"],
        ["large", "1", "25.0 %", "12", "26.1 %", "0.01 s", "0.8"],
        ["thinking", "4", "100.0 %", "46", "100.0 %", "0.04 s", "0.9"],
        ["answer large", "", "", "5", "", "0.50 s", "100.0"],
        ["closing of the thinking", "", "", "3", "", "", ""],
        ["all", "", "", "54", "", "0.54 s", "10.0"],
    ]


def test_facts_of_the_run() -> None:
    assert run_facts(parsed(trace_to_html(trace(4)))) == {
        "ended by": "end of the sequence",
        "tau": "1 nats",
        "seed": "7 (substream 0)",
        "thinking budget": "512 tokens",
    }


REMARKS: dict[str, tuple[list[float], float, str, int]] = {
    "ordinary": ([1.0, 1.0], 1.0, "dashed: tau = 1 nats", 1),
    "infinite": ([math.inf, math.inf], math.inf, "tau is infinite: no entropy is above it", 0),
    "zero": ([0.0, 0.0], 0.0, "dashed: tau = 0 nats", 1),
    "far above": ([1e9, 1e9], 1e9, "above the chart: tau = 1e+09 nats", 0),
    "changing": ([1.0, 0.5], 1.0, "dashed: tau, which changes between the steps", 2),
    "unknown": ([math.nan, math.nan], math.nan, "tau is not recorded", 0),
}


@pytest.mark.parametrize(("taus", "threshold", "remark", "lines"), REMARKS.values(), ids=REMARKS)
def test_tau(taus: list[float], threshold: float, remark: str, lines: int) -> None:
    written = [step(i, threshold=tau) for i, tau in enumerate(taus)]
    root = parsed(trace_to_html(trace(steps=written, threshold=threshold)))
    assert words(next(root.iter("figcaption"))).endswith(remark)
    assert len(with_class(root, "path", "tau")) == lines


def test_a_policy_has_a_name_and_no_line() -> None:
    """The name comes from a file: it is escaped."""
    written = [step(i, threshold=math.nan) for i in range(2)]
    root = parsed(trace_to_html(trace(steps=written, threshold=math.nan, policy="<b>Coin</b>")))
    assert words(next(root.iter("figcaption"))).endswith("policy <b>Coin</b>")
    facts = dict(zip(root.iter("dt"), root.iter("dd"), strict=True))
    named = {words(name): words(value) for name, value in facts.items()}
    assert named["policy"] == "<b>Coin</b>"
    assert "tau" not in named
    assert not with_class(root, "path", "tau")


def test_steps_without_a_glimpse() -> None:
    """In a lane of their own below the axis, and counted."""
    written = [step(0, "large", entropy=None), step(1), step(2, "large", entropy=None)]
    root = parsed(trace_to_html(trace(steps=written)))
    assert "none: no glimpse (2 steps)" in words(next(root.iter("figcaption")))
    titles = [words(title) for title in next(root.iter("figure")).iter("title")]
    assert titles[0] == "step 0, large: no glimpse, 10 tokens"
    forced = [step(i, "large", entropy=None, threshold=math.inf) for i in range(3)]
    root = parsed(trace_to_html(trace(steps=forced, threshold=math.inf)))
    assert not with_class(root, "path", "stems")


UNFINISHED: dict[str, tuple[dict[str, Any], str]] = {
    "interrupted": ({"end_reason": "interrupted"}, "Not finished: the run was interrupted."),
    "failed": ({"end_reason": "error", "error": "row <3> is NaN"}, "Failed: row <3> is NaN."),
    "without end": ({"end_reason": "none"}, "Not finished: it has no end."),
}


@pytest.mark.parametrize(("fields", "says"), UNFINISHED.values(), ids=UNFINISHED)
def test_an_unfinished_chain_says_so(fields: dict[str, Any], says: str) -> None:
    root = parsed(trace_to_html(trace(**fields, answer="", answer_tokens=0)))
    (alert,) = with_class(root, "p", "alert")
    assert words(alert).startswith(says)
    assert "There is no answer." in words(root)
    assert not with_class(parsed(trace_to_html(trace())), "p", "alert")


def test_nothing_at_all() -> None:
    root = parsed(trace_to_html(gr.Trace()))
    assert "There are no steps." in words(root)
    assert "There is no answer." in words(root)


def test_why_a_step_ended_is_said_where_it_is_not_the_delimiter() -> None:
    written = [step(0), step(1, end_reason="cap"), step(2, end_reason="<odd>")]
    root = parsed(trace_to_html(trace(steps=written)))
    notes = [words(note) for cell in with_class(root, "td", "words") for note in cell[1:]]
    assert notes == ["ended by: the step's token limit", "ended by: <odd>"]


def contrast(first: str, second: str) -> float:
    """Of two colours ``#rrggbb``, as the web's accessibility guidelines define it."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_colours_are_legible_in_light_and_dark() -> None:
    (style,) = parsed(trace_to_html(gr.Trace())).iter("style")
    themes = re.findall(r":root \{([^}]*)\}", str(style.text))
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", theme))
        for name in ("ink", "soft", "small", "large"):
            for ground in ("paper", "panel"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
