"""What a server tells who looks on: metrics, and the live view."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from glimprouter.hf import Event
from glimprouter.serve.errors import Failure
from glimprouter.serve.live import PAGE, LiveView
from serving import PROMPTS, Running, alone, lone_pair, metrics, new_pair, running


def glimpsed(prompt: str, seed: int) -> list[float]:
    """Of a prompt alone; also those whose step turned out to be the end of the thinking."""
    chat = [{"role": "user", "content": prompt}]
    events = lone_pair().stream([chat], seeds=[seed])
    return [event.entropy for event in events if event.entropy is not None]


def test_metrics_are_those_of_the_traces() -> None:
    with running(new_pair(drafts=4)) as server:
        before = metrics(server)
        assert before["glimprouter_tokens_total", "large"] == 0
        answers = [
            server.chat(PROMPTS[place], 3, extra_body={"glimprouter": {"trace": True}})
            for place in range(3)
        ]
        server.held()
        found = metrics(server)
    steps = [step for a in answers for step in a.choices[0].glimprouter["trace"]["steps"]]
    entropies = [entropy for place in range(3) for entropy in glimpsed(PROMPTS[place], 3)]
    written = {
        name: sum(a.usage.glimprouter[f"{name}_tokens"] for a in answers)
        for name in ("small", "large")
    }
    for name in ("small", "large"):
        assert found["glimprouter_tokens_total", name] == written[name] > 0
        assert found["glimprouter_steps_total", name] == sum(s["model"] == name for s in steps)
    share = written["large"] / sum(written.values())
    assert found["glimprouter_large_token_share",] == pytest.approx(share)
    assert found["glimprouter_glimpse_entropy_nats_count",] == len(entropies)
    assert found["glimprouter_glimpse_entropy_nats_sum",] == pytest.approx(sum(entropies), rel=1e-3)
    assert found["glimprouter_handoffs_total",] == sum(
        a.usage.glimprouter["handoffs"] for a in answers
    )
    accepted, compared = (
        found[f"glimprouter_drafts_{name}_total",] for name in ("accepted", "compared")
    )
    assert 0 < accepted <= compared
    assert found["glimprouter_draft_accept_rate",] == pytest.approx(accepted / compared)
    assert found["glimprouter_http_answers_total", "chat", "200"] == 3
    assert found["glimprouter_rows",] == 8
    assert found["glimprouter_page_bytes",] > found["glimprouter_page_bytes_used",] == 0
    for name in ("rows_used", "sequences_waiting", "sequences_running", "sequences_preempted"):
        assert found[f"glimprouter_{name}",] == 0


def test_metrics_while_it_writes() -> None:
    with running(new_pair(max_sequences=1)) as server:
        streams = [server.chat(PROMPTS[place], stream=True) for place in range(2)]
        next(streams[0])
        found = metrics(server)
        assert found["glimprouter_rows_used",] == 1
        assert found["glimprouter_sequences_waiting",] == 1
        assert found["glimprouter_page_bytes_used",] > 0
        for stream in streams:
            stream.close()


def updates(lines: Any) -> Any:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_the_live_view_has_what_was_and_what_comes() -> None:
    with running() as server:
        want = alone(PROMPTS[0], 3)
        server.chat(PROMPTS[0], 3)
        with httpx.stream("GET", f"{server.url}/live", timeout=60) as feed:
            events = updates(feed.iter_lines())
            first = next(events)
            kept = first["updates"]
            assert kept[0] == {"kind": "begin", "prompt": PROMPTS[0], "id": 0}
            assert "".join(u["text"] for u in kept if u["kind"] == "text").startswith(
                want.text[:50]
            )
            assert kept[-1] == {"kind": "end", "reason": want.trace.end_reason, "id": 0}
            assert sum(first["totals"].values()) == want.trace.total_tokens
            server.chat(PROMPTS[1], 3)
            seen = []
            while not seen or seen[-1]["kind"] != "end":
                seen += next(events)["updates"]
        other = alone(PROMPTS[1], 3)
        text = "".join(u["text"] for u in seen if u["kind"] == "text")
        assert text.removesuffix("<|im_end|>") == other.text
        drawn = [u["entropy"] for u in seen if u["kind"] == "route"]
        own = [step.entropy for step in other.trace.steps if step.entropy is not None]
        assert drawn[: len(own)] == pytest.approx(own, abs=1e-4)


def test_who_looked_on_and_left_is_forgotten(server: Running) -> None:
    assert server.server.live is not None
    with httpx.stream("GET", f"{server.url}/live") as feed:
        lines = feed.iter_lines()  # kept: one that is dropped ends the connection
        next(lines)
        assert len(server.server.live._viewers) == 1
    while server.server.live._viewers:
        time.sleep(0.01)


class _Loads(HTMLParser):
    """Addresses that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.found += [
            value for name, value in attributes if name in ("src", "href", "srcset", "action")
        ]


def test_the_page_is_one_file_that_loads_nothing(server: Running) -> None:
    answer = httpx.get(f"{server.url}/")
    assert answer.content == PAGE.read_bytes()
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = _Loads()
    page.feed(answer.text)
    assert page.found == ["data:,"]
    assert not re.search(r"https?://|@import|url\(|innerHTML", answer.text)


def test_a_live_view_that_is_off_is_not_there() -> None:
    with running(live_view=False) as server:
        for path in ("/", "/live"):
            assert httpx.get(server.url + path).status_code == 404


def kinds(live: LiveView) -> dict[int, list[str]]:
    return {ticket: [one["kind"] for one in kept] for ticket, kept in live._kept.items()}


def test_what_is_written_stays_in_view_while_others_wait() -> None:
    live = LiveView()
    for ticket in (0, 1, 2):
        live.begin(ticket, "x")
        live.note(ticket, Event(ticket, "token", model="small", text="a"))
    live.note(1, Failure("x", 500))
    for ticket in range(3, 100):
        live.begin(ticket, "x")
    found = kinds(live)
    assert len(found) == 24
    assert found[0] == found[2] == ["begin", "text"]
    assert 1 not in found  # it had ended
    assert 3 not in found  # it waits, and waited before the others


def test_a_glance_at_the_head_takes_no_place(server: Running) -> None:
    assert server.server.live is not None
    assert httpx.head(f"{server.url}/live").status_code == 200
    assert not server.server.live._viewers


def test_places_to_look_on_are_bounded() -> None:
    live = LiveView()
    viewers = [live.join() for _ in range(17)]
    assert viewers[-1] is None
    assert viewers[0] is not None
    live.leave(viewers[0])
    assert live.join() is not None
    live.close()
    assert live.join() is None
