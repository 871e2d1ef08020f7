"""Threads that share a pair, or models: each writes what it writes alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import hf_pairs
from glimprouter.demo_pair import large_path, small_path
from glimprouter.hf import RoutedModel
from glimprouter.hf.pair import locks
from glimprouter.hf.pair.locks import exclusive, loading

pytestmark = pytest.mark.both_engines

THREADS = 4


def ids(results: list[Any]) -> list[list[int]]:
    return [result.token_ids for result in results]


def together(*calls: Callable[[], Any]) -> list[Any]:
    """All calls at once, each in a thread of its own."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


def test_one_pair_in_several_threads() -> None:
    pair = hf_pairs.random_pair("qwen3")
    routed = pair.routed()
    prompts = pair.prompts[:THREADS]
    alone = [ids(routed.generate([prompt])) for prompt in prompts]
    found = together(*(lambda p=prompt: ids(routed.generate([p])) for prompt in prompts))
    assert found == alone


def test_pairs_that_share_models() -> None:
    """The large model of one pair is the small one of another, and the other way round."""
    pair = hf_pairs.random_pair("qwen3")
    there = pair.routed()
    back = RoutedModel(pair.large, pair.small, pair.tokenizer, there.config, engine=there.engine)
    prompts = pair.prompts[:2]
    alone = [ids(there.generate(prompts)), ids(back.generate(prompts))]
    calls = [lambda: ids(there.generate(prompts)), lambda: ids(back.generate(prompts))]
    assert together(*calls, *calls) == alone * 2


def test_a_stream_that_is_half_read_holds_nobody_up() -> None:
    pair = hf_pairs.random_pair("qwen3")
    routed = pair.routed()
    alone = ids(routed.generate(pair.prompts[:1]))
    run = routed.stream(pair.prompts[:1])
    for _ in range(3):
        next(run)
    assert together(lambda: ids(routed.generate(pair.prompts[:1])))[0] == alone
    rest = [event.result for event in run if event.result is not None]
    assert [result.token_ids for result in rest] == alone


def test_pairs_are_loaded_and_made_while_others_run() -> None:
    pair = hf_pairs.random_pair("qwen3")
    routed = pair.routed()
    alone = ids(routed.generate(pair.prompts[:2]))

    def load() -> Any:
        loaded = RoutedModel.from_pretrained(
            small_path(), large_path(), dtype={"small": torch.bfloat16, "large": torch.float32}
        )
        return {str(loaded.small.dtype), str(loaded.large.dtype)}

    found = together(lambda: ids(routed.generate(pair.prompts[:2])), load, load)
    assert found[0] == alone
    assert found[1] == found[2] == {"torch.bfloat16", "torch.float32"}
    assert torch.get_default_dtype() == torch.float32


def test_who_holds_a_model_may_hold_it_again_and_others_wait() -> None:
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    entered: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive(first, second), exclusive(second, first), exclusive(first, first):
            entered.append("pass")
            inside.set()
            leave.wait()

    def other(name: str, context: Callable[[], Any]) -> None:
        with context():
            entered.append(name)

    threads = [threading.Thread(target=hold)]
    threads[0].start()
    inside.wait()
    for name, context in (("model", lambda: exclusive(second)), ("load", loading)):
        threads.append(threading.Thread(target=other, args=(name, context)))
        threads[-1].start()
    assert entered == ["pass"]
    leave.set()
    for thread in threads:
        thread.join()
    assert sorted(entered[1:]) == ["load", "model"]


def test_loading_inside_of_a_pass_is_refused() -> None:
    """It would wait for itself."""
    model = torch.nn.Linear(1, 1)
    with (
        exclusive(model),
        pytest.raises(RuntimeError, match="cannot be loaded inside of a forward pass"),
        loading(),
    ):
        pass
    with loading():  # nothing is held any more
        pass


def test_an_interrupted_load_opens_the_gate_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(1, 1)
    waits = locks._gate._changed.wait_for

    def interrupted(condition: Callable[[], bool]) -> bool:
        if not condition():
            raise KeyboardInterrupt
        return waits(condition)

    with ThreadPoolExecutor(1) as pool:
        inside, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with exclusive(model):
                inside.set()
                leave.wait()

        held = pool.submit(hold)
        inside.wait()
        with monkeypatch.context() as patch:
            patch.setattr(locks._gate._changed, "wait_for", interrupted)
            with pytest.raises(KeyboardInterrupt), loading():
                pass
        leave.set()
        held.result()
    with exclusive(model), exclusive(model):
        pass


def test_a_run_goes_from_thread_to_thread() -> None:
    pair = hf_pairs.random_pair("qwen3")
    routed = pair.routed()
    alone = ids(routed.generate(pair.prompts[:2]))
    run = routed.stream(pair.prompts[:2])
    events = [next(run)]
    saved: list[bytes] = []
    together(lambda: events.extend(next(run) for _ in range(5)))
    together(lambda: saved.append(run.save(0)))
    together(lambda: events.extend(run))
    results = sorted((e for e in events if e.result is not None), key=lambda e: e.sequence)
    assert ids([event.result for event in results]) == alone
    rest = together(lambda: list(routed.resume(saved)))[0]
    assert ids([event.result for event in rest if event.result is not None]) == alone[:1]


def test_threads_share_one_run() -> None:
    """Each event goes to one of them."""
    pair = hf_pairs.random_pair("qwen3")
    routed = pair.routed()
    alone = ids(routed.generate(pair.prompts[:2]))
    run = routed.stream(pair.prompts[:2])
    events = [event for part in together(*[lambda: list(run)] * 3) for event in part]
    results = sorted((e for e in events if e.result is not None), key=lambda e: e.sequence)
    assert ids([event.result for event in results]) == alone
