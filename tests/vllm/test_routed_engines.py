"""The client with engines that play vLLM, against RoutedModel; faults of engines, and bad input."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import re
from typing import Any

import pytest
import torch

import glimprouter as gr
import hf_translated
from close_draws import assert_at_an_edge, first_difference
from glimprouter.hf import Result
from glimprouter.vllm import EngineLost, EngineRefused, RoutedEngines
from glimprouter.vllm import sequence as sequence_module
from glimprouter.vllm.engines.base import EngineRequest
from hf_pairs import random_pair, trained_pair
from played_engines import CONFIG, PlayedEngine, played, same
from serving_engines import done


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"first_steps_large": 2},
        {"first_steps_large": 3, "large_tokens": 2},
        {"large_tokens": 3},
        {"route": "small"},
        {"route": "large", "max_step_tokens": 4},
        {"max_step_tokens": 2},
        {"max_think_tokens": 7},
        {"repetition_guard": True, "max_think_tokens": 200},
        {"comparison": ">=", "entropy_top_k": 20},
        {"answer_model": "small"},
        {"max_answer_tokens": 0},
        {"threshold": 0.0},
        {"threshold": math.inf},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["qwen3", "trained"])
def test_results_are_those_of_a_routed_model(name: str, config: dict[str, Any]) -> None:
    pair = random_pair(name) if name != "trained" else trained_pair()
    want = pair.routed(**config).generate(pair.prompts)
    client, _, _ = played(pair, **config)
    same(client.generate(pair.prompts), want)
    client.close()


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5])
@pytest.mark.parametrize(
    "config",
    [{}, {"top_p": 0.9, "large_tokens": 2}, {"top_k": 20, "first_steps_large": 2}],
    ids=str,
)
@pytest.mark.parametrize("name", ["qwen3", "trained"])
def test_both_models_draw_what_they_draw_in_a_routed_model(
    name: str, config: dict[str, Any], seed: int
) -> None:
    pair = random_pair(name) if name != "trained" else trained_pair()
    options = {"temperature": 0.8, **config}
    want = pair.routed(**options).generate(pair.prompts, seeds=seed)
    writers = {step.model for result in want for step in result.trace.steps}
    assert writers == {"small", "large"}
    client, _, _ = played(pair, **options)
    got = client.generate(pair.prompts, seeds=seed)
    client.close()
    places = [first_difference(*both) for both in zip(got, want, strict=True)]
    for index, place in enumerate(places):
        both = (got[index], want[index])
        if place is None:
            same([got[index]], [want[index]])
        else:
            assert_at_an_edge(pair, pair.prompts[index], both, place, {**CONFIG, **options})
    assert sum(place is not None for place in places) <= 1


def test_two_requests_for_each_hard_step_and_two_more() -> None:
    """And the prompts of one engine are prefixes of its next ones: nothing is tokenized anew."""
    pair = trained_pair()
    client, small, large = played(pair, max_think_tokens=300)
    results = client.generate(pair.prompts)
    hard = sum(step.model == "large" for result in results for step in result.trace.steps)
    assert hard >= 5
    asked = len(small.requests) + len(large.requests) - 2  # the greetings
    assert asked <= 2 * hard + 2 * len(results)
    assert client.usage["small"].requests + client.usage["large"].requests == asked
    for engine in (small, large):
        for index, result in enumerate(results):
            whole = [*pair.prompts[index], *result.token_ids]
            own = [r.prompt for r in engine.requests if r.replica == index][1:]
            for prompt in own:
                assert list(prompt) == whole[: len(prompt)]


def test_two_tokenizers() -> None:
    pair, make, encoded = hf_translated.permuted_pair("trained", "large")
    want = make(pair.routed(max_think_tokens=100).config).generate(encoded)
    model = make(pair.routed(max_think_tokens=100).config)
    small = PlayedEngine(model.small, model.tokenizer)
    large = PlayedEngine(model.large, model.large_tokenizer)
    client = RoutedEngines(
        small, large, model.tokenizer, model.config, large_tokenizer=model.large_tokenizer
    )
    same(client.generate(encoded), want)


def test_events_are_those_of_a_run() -> None:
    """Kinds, tokens and texts in order, sequence by sequence."""
    pair = trained_pair()
    client, _, _ = played(pair)

    def told(run: Any) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = {}
        for event in run:
            own = (event.kind, event.token_id, event.text, event.model)
            found.setdefault(event.sequence, []).append(own)
        return found

    want = told(pair.routed().stream(pair.prompts))
    assert told(client.stream(pair.prompts)) == want


def test_a_run_in_the_callers_event_loop() -> None:
    pair = trained_pair()
    client, _, _ = played(pair)

    async def main() -> list[Result]:
        run = await client.astream(pair.prompts)
        return [event.result async for event in run if event.result is not None]

    results = asyncio.run(main())
    want = pair.routed().generate(pair.prompts)
    same(sorted(results, key=lambda r: [w.token_ids for w in want].index(r.token_ids)), want)


def lost_after(*places: int) -> Any:
    """An engine that is lost once behind each of these numbers of tokens."""
    left = sorted(places)

    def fault(tokens: int) -> None:
        if left and tokens >= left[0]:
            del left[0]
            raise EngineLost("the connection was reset")

    return fault


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_lost_requests_go_on_where_they_were(temperature: float) -> None:
    """The ids so far are known, and draws depend on places: no token changes."""
    pair = trained_pair()
    client, _, _ = played(pair, temperature=temperature)
    want = client.generate(pair.prompts, 3)
    client, small, large = played(pair, temperature=temperature)
    client.generate([pair.prompts[0]])
    small.fault, large.fault = lost_after(*range(0, 900, 40)), lost_after(*range(0, 300, 11))
    same(client.generate(pair.prompts, 3), want)
    assert client.usage["small"].retries + client.usage["large"].retries >= 8


@dataclasses.dataclass
class Away:
    """An engine that does not answer from so many tokens on."""

    since: float = math.inf

    def __call__(self, tokens: int) -> None:
        if tokens >= self.since:
            raise EngineLost("connection refused")


def test_an_engine_that_stays_away_ends_its_sequences_which_are_resumed_later() -> None:
    pair = trained_pair()
    want = pair.routed().generate(pair.prompts)
    client, _, large = played(pair, patience=0.3)
    client.generate(pair.prompts[:1])
    away = large.fault = Away(large.tokens + 30)
    run = client.stream(pair.prompts)
    ended = [event.result for event in run if event.result is not None]
    errors = [str(result.trace.error) for result in ended if result.trace.error is not None]
    assert len(ended) == 5
    assert len(errors) == len(run.saved) >= 2
    assert all("the large engine" in error and "stayed away" in error for error in errors)
    away.since = math.inf
    places = sorted(run.saved)
    again = client.resume([run.saved[place] for place in places])
    results = {event.sequence: event.result for event in again if event.result is not None}
    for place, index in enumerate(places):
        same([results[place]], [want[index]])  # type: ignore[list-item]
    assert not again.saved


def test_a_server_that_comes_back_as_another_model_is_refused() -> None:
    pair = trained_pair()
    client, small, _ = played(pair, patience=0.5)
    client.generate(pair.prompts[:1])
    small.name = "another"
    small.fault = lost_after(small.tokens + 3)
    (result,) = client.generate(pair.prompts[:1])
    assert "was played" in str(result.trace.error)
    assert "is another" in str(result.trace.error)
    small.name = "played"
    (event,) = [e for e in client.resume(list(client.saved.values())) if e.result is not None]
    assert event.result is not None
    same([event.result], pair.routed().generate(pair.prompts[:1]))


@pytest.mark.parametrize("which", ["small", "large"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": False}, "no gate"),
        ({"mode": "raw_logprobs"}, "--logprobs-mode"),
        ({"mode": "processed_logprobs"}, "--logprobs-mode"),
        ({"tokenizer": True}, "tokenizer"),
    ],
    ids=str,
)
def test_engines_that_cannot_serve_are_found_at_the_start(
    which: str, change: dict[str, Any], message: str
) -> None:
    pair = trained_pair()
    client, small, large = played(pair)
    engine = small if which == "small" else large
    change = dict(change)
    if change.pop("tokenizer", None):
        other = PlayedEngine(pair.small, random_pair("qwen3").tokenizer)
        engine._boundaries = other._boundaries
    for name, value in change.items():
        setattr(engine, name, value)
    with pytest.raises(EngineRefused, match=f"the {which} engine.*{message}"):
        client.generate(pair.prompts)
    assert len(engine.requests) == 1


@pytest.mark.parametrize("version", ["0.47.1", "0.8.5", "0.320.0", "0.3"])
def test_a_version_that_was_not_tried_is_said(version: str) -> None:
    pair = trained_pair()
    client, small, _ = played(pair)
    small.version = version
    with pytest.warns(RuntimeWarning, match=rf"{re.escape(version)}; .*with 0\.32$"):
        client.generate(pair.prompts[:1])


def test_an_engine_that_is_not_there_at_the_start() -> None:
    pair = trained_pair()
    client, _, large = played(pair)
    large.fault = Away(0)
    with pytest.raises(EngineLost, match="the large engine"):
        client.generate(pair.prompts)


@pytest.mark.parametrize("on_invalid", ["raise", "end"])
def test_invalid_logits(on_invalid: Any) -> None:
    pair = trained_pair()
    want = pair.routed().generate(pair.prompts)
    client, small, _ = played(pair, on_invalid=on_invalid)

    def spoil(logits: torch.Tensor, request: EngineRequest) -> None:
        if request.replica == 1 and len(request.prompt) > len(pair.prompts[1]):
            logits[0, 3] = math.nan

    small.change = spoil
    if on_invalid == "raise":
        with pytest.raises(RuntimeError, match="sequence 1: the small model gave logits"):
            client.generate(pair.prompts)
        return
    results = client.generate(pair.prompts)
    assert "nan" in str(results[1].trace.error)
    same([results[0], *results[2:]], [want[0], *want[2:]])


def test_a_gate_that_disagrees_ends_its_sequence() -> None:
    """Another rule in the engine than in the client would give wrong texts without a word."""
    pair = trained_pair()
    client, small, _ = played(pair)
    client.generate(pair.prompts[:1])
    row = small._boundaries.row

    def never(options: Any) -> Any:
        return row(dataclasses.replace(options, decides=False))

    small._boundaries.row = never  # type: ignore[method-assign]
    (result,) = client.generate(pair.prompts[:1])
    assert "a step starts" in str(result.trace.error)


def test_repeated_steps_close_the_thinking_and_the_rest_is_dropped() -> None:
    """Only the client sees repetitions: the engine is told to stop."""
    pair = random_pair("qwen3")
    options = {"repetition_guard": True, "threshold": math.inf, "max_think_tokens": 300}
    client, _, _ = played(pair, **options)
    results = client.generate(pair.prompts)
    ended = [step.end_reason for result in results for step in result.trace.steps[-1:]]
    assert "repetition" in ended
    same(results, pair.routed(**options).generate(pair.prompts))


def test_answers_come_as_a_whole_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written behind repeated steps, which only the client sees, is no more than a part."""
    monkeypatch.setattr(sequence_module, "_MOST_AT_ONCE", 7)
    pair = random_pair("qwen3")
    options = {"repetition_guard": True, "threshold": math.inf, "max_think_tokens": 300}
    client, small, _ = played(pair, **options)
    same(client.generate(pair.prompts), pair.routed(**options).generate(pair.prompts))
    assert 0 < client.usage["small"].dropped_tokens <= 6 * len(pair.prompts)
    written = small.requests[1:]
    assert all(request.whole and request.max_tokens <= 7 for request in written)
    done(client.stream(pair.prompts[:1]))
    assert not any(request.whole for request in small.requests[1 + len(written) :])


def test_many_at_once_and_one_at_a_time() -> None:
    pair = random_pair("qwen3")
    prompts = [pair.prompts[index % 5] for index in range(30)]
    client, _, _ = played(pair, max_think_tokens=20)
    together = client.generate(prompts)
    client.max_sequences = 1
    same(client.generate(prompts), together)


def test_a_context_that_ends_is_said() -> None:
    pair = random_pair("qwen3")
    client, small, large = played(pair, max_think_tokens=None)
    small._context = large._context = 64
    with pytest.raises(ValueError, match="context of 64"):
        client.generate([list(range(60, 124))])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_sequences": 0}, ValueError, "max_sequences"),
        ({"timeout": 0.0}, ValueError, "timeout"),
        ({"patience": -1.0}, ValueError, "patience"),
        ({"on_invalid": "ignore"}, ValueError, "on_invalid"),
        ({"thinking": "loud"}, ValueError, "thinking"),
        ({"config": gr.RouterConfig(route="manual")}, ValueError, "manual"),
        ({"small": 7}, TypeError, "AsyncLLM"),
        ({"small": "localhost:8000"}, ValueError, "http"),
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    pair = trained_pair()
    engine = PlayedEngine(pair.small, pair.tokenizer)
    own = {"small": engine, "large": engine, "tokenizer": pair.tokenizer, **options}
    with pytest.raises(error, match=message):
        RoutedEngines(**own)


def test_bad_prompts() -> None:
    pair = trained_pair()
    client, _, _ = played(pair)
    with pytest.raises(TypeError, match="list"):
        client.generate("hello")
    with pytest.raises(TypeError, match="unknown option"):
        client.generate(["hello"], treshold=1.0)
    with pytest.raises(ValueError, match="seeds"):
        client.generate(["hello"], [1, 2])
    with pytest.raises(TypeError, match="list"):
        client.resume(b"saved")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a saved sequence"):
        list(client.resume([b"saved"]))
