"""Runs on engines whose sequences come and go: added, cancelled, saved, forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import glimprouter as gr
from glimprouter.hf import Result
from glimprouter.vllm import EngineLost, EngineRun, RoutedEngines
from glimprouter.vllm import sequence as sequence_module
from hf_pairs import trained_pair
from played_engines import PlayedEngine

PAIR = trained_pair()
CONFIG = gr.RouterConfig(
    threshold=PAIR.threshold, temperature=0.0, top_p=1.0, max_think_tokens=60, max_answer_tokens=8
)


def engines(**options: Any) -> RoutedEngines:
    made = [PlayedEngine(model, PAIR.tokenizer) for model in (PAIR.small, PAIR.large)]
    return RoutedEngines(*made, PAIR.tokenizer, CONFIG, **options)


def wanted(**options: Any) -> list[Result]:
    """Of the same prompts, all at once."""
    return engines().generate(PAIR.prompts, 3, **options)


def results_of(run: EngineRun) -> dict[int, Result]:
    return {event.sequence: event.result for event in run if event.result is not None}


def until_written(run: EngineRun, sequence: int, count: int) -> None:
    """Takes events until a sequence has so many tokens."""
    while count:
        event = next(run)
        count -= event.kind == "token" and event.sequence == sequence


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prompts_join_a_run_that_goes_and_one_that_rests(temperature: float) -> None:
    want = wanted(temperature=temperature)
    run = engines(max_sequences=2).stream([], temperature=temperature)
    assert (run.sequences, run.step()) == ([], [])
    first = run.add(PAIR.prompts[0], 3)
    until_written(run, first, 5)
    for prompt in PAIR.prompts[1:3]:
        run.add(prompt, 3)
    usage = run.usage()
    assert (usage.rows, usage.running + usage.waiting, usage.memory) == (2, 3, None)
    got = results_of(run)
    assert run.sequences == []
    for place, prompt in enumerate(PAIR.prompts[3:], start=3):
        assert run.add(prompt, 3) == place
    while events := run.step():
        got |= {event.sequence: event.result for event in events if event.result is not None}
    assert [got[place].text for place in range(5)] == [result.text for result in want]
    assert run.trace(4).end_reason == want[4].trace.end_reason


def test_a_sequence_has_its_own_options_and_random_key() -> None:
    want = engines().generate([PAIR.prompts[1]], 9, temperature=1.0, route="small")
    run = engines().stream([])
    run.add(PAIR.prompts[0])
    run.add(PAIR.prompts[1], 9, substream=0, temperature=1.0, route="small")
    got = results_of(run)
    assert got[1].text == want[0].text
    assert got[0].text == wanted()[0].text
    with pytest.raises(TypeError, match="treshold"):
        run.add(PAIR.prompts[0], treshold=1.0)
    with pytest.raises(ValueError, match="seed"):
        run.add(PAIR.prompts[0], -1)
    assert run.sequences == []


def test_cancelled_sequences_end_and_the_others_do_not_notice() -> None:
    """One that runs, and one that waits for its row."""
    client = engines(max_sequences=2)
    run = client.stream(PAIR.prompts, 3)
    until_written(run, 0, 12)
    run.cancel(0)
    run.cancel(4)
    with pytest.raises(ValueError, match="sequence 4 has ended"):
        run.cancel(4)
    got = results_of(run)
    want = wanted()
    assert [got[place].trace.end_reason for place in (0, 4)] == ["cancelled", "cancelled"]
    assert want[0].text.startswith(got[0].text)
    assert 12 <= got[0].trace.total_tokens < want[0].trace.total_tokens
    assert got[4].token_ids == []
    assert [got[place].text for place in (1, 2, 3)] == [want[place].text for place in (1, 2, 3)]


@pytest.mark.parametrize("closes", [False, True])
def test_a_sequence_ends_also_where_its_next_token_is_just_there(closes: bool) -> None:
    """Python before 3.12 forgets a cancellation that comes at the same moment as a result."""
    client = engines()
    engine: Any = client._engines["large"]._engine

    async def main() -> EngineRun:
        run = await client.astream(PAIR.prompts[:1], route="large", max_think_tokens=400)
        end = (lambda: ends.append(asyncio.ensure_future(run.aclose()))) if closes else None
        ends: list[Any] = []

        def change(*_: Any) -> None:
            if engine.tokens == began + 5:
                asyncio.get_running_loop().call_soon(end or (lambda: run.cancel(0)))

        began, engine.change = engine.tokens, change
        async for _ in run:
            pass
        await asyncio.gather(*ends)
        assert engine.tokens - began <= 7
        return run

    run = asyncio.run(main())
    if not closes:
        assert run.trace(0).end_reason == "cancelled"


def test_a_sequence_that_was_saved_goes_on_here_and_elsewhere() -> None:
    run = engines().stream(PAIR.prompts[:2], 3, temperature=1.0)
    until_written(run, 1, 9)
    saved = run.save(1)
    want = results_of(run)
    assert want[1].text == wanted(temperature=1.0)[1].text
    assert results_of(engines().resume([saved]))[0].text == want[1].text
    other = engines().stream([])
    assert other.load(saved) == 0
    assert results_of(other)[0].text == want[1].text
    with pytest.raises(ValueError, match="has ended"):
        run.save(1)
    with pytest.raises(ValueError, match="not a saved sequence"):
        other.load(b"saved")


def test_a_sequence_that_waits_cannot_be_saved() -> None:
    run = engines(max_sequences=1).stream(PAIR.prompts[:2])
    until_written(run, 0, 1)
    with pytest.raises(ValueError, match="sequence 1 has not begun"):
        run.save(1)
    run.close()


def test_what_has_ended_is_forgotten() -> None:
    run = engines().stream(PAIR.prompts[:1])
    with pytest.raises(ValueError, match="has not ended"):
        run.release(0)
    results_of(run)
    run.release(0)
    for ask in (run.release, run.trace, run.cancel, run.save):
        with pytest.raises(IndexError, match="no sequence 0"):
            ask(0)
    assert run.add(PAIR.prompts[1], 3) == 1


def test_a_run_that_was_closed_takes_no_more() -> None:
    run = engines().stream(PAIR.prompts[:2])
    next(run)
    run.close()
    assert list(run) == []
    with pytest.raises(RuntimeError, match="is over"):
        run.add(PAIR.prompts[0])


def test_who_waits_for_events_gets_those_of_a_sequence_that_comes_later() -> None:
    """In an event loop: one task waits while another adds."""

    async def main() -> list[str]:
        run = await engines().astream(PAIR.prompts[:1])
        texts = []

        async def follow() -> None:
            async for event in run:
                if event.result is not None:
                    texts.append(event.result.text)

        following = asyncio.ensure_future(follow())
        await asyncio.sleep(0)
        run.add(PAIR.prompts[1], substream=1)
        await following
        return texts

    want = engines().generate(PAIR.prompts[:2])
    assert sorted(asyncio.run(main())) == sorted(result.text for result in want)


def test_engines_that_are_away_are_known() -> None:
    """Also those that nobody asks for tokens; and when they are back."""
    client = engines()
    client.check()
    assert client.away == {}
    engine: Any = client._engines["large"]._engine

    def lost(_: int) -> None:
        raise EngineLost("connection refused")

    engine.fault = lost
    client.thread.call(client.aprobe())
    assert list(client.away) == ["large"]
    since = client.away["large"]
    client.thread.call(client.aprobe())
    assert client.away["large"] >= since > 0
    engine.fault, engine.name = None, "another"
    client.thread.call(client.aprobe())
    assert list(client.away) == ["large"]
    engine.name = "played"
    client.thread.call(client.aprobe())
    assert client.away == {}
    client.close()


def test_facts_are_known_once_the_engines_were_asked() -> None:
    client = engines()
    with pytest.raises(RuntimeError, match="call check"):
        _ = client.contexts
    client.check()
    assert client.contexts == {"small": 2048, "large": 2048}
    assert client.boundary is client.large_boundary
    assert [format.end for format in client.thinking_formats if format] == ["</think>"] * 2


def test_what_no_gate_says_ends_its_sequence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that lost its gate for one answer: the others go on, and this one is kept."""
    want = engines().generate(PAIR.prompts[:3], 3)
    meant, strange = sequence_module.meaning_of, [5]

    def meaning_of(*told: Any) -> Any:
        strange[0] -= 1
        if strange[0] == 0:
            return meant(told[0], -7.5, told[2])
        return meant(*told)

    client = engines()
    client.check()
    monkeypatch.setattr(sequence_module, "meaning_of", meaning_of)
    run = client.stream(PAIR.prompts[:3], 3)
    got = results_of(run)
    (ended,) = run.saved
    assert run.refused == set(run.saved)
    assert "no gate says" in str(got[ended].trace.error)
    assert [got[k].text for k in got if k != ended] == [want[k].text for k in got if k != ended]
    again = results_of(client.resume([run.saved[ended]]))
    assert [result.text for result in again.values()] == [want[ended].text]
    client.close()
