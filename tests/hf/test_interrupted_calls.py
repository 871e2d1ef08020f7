"""Calls of a run that are interrupted in the middle: never other text without an error."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from glimprouter.hf.sequence import record as record_module
from hf_runs import begun, finish, routed, uninterrupted, written

pytestmark = pytest.mark.both_engines


def interrupts(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The next call of a method does not even begin."""
    original = getattr(owner, name)

    def interrupt(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(owner, name, original)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupt)


@pytest.mark.parametrize("place", ["record", "engine"])
def test_a_rewind(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    model, prompts = routed("qwen3")
    run = begun(model, prompts[:2], 14)
    engine = type(run._sequences.engine)
    owner = record_module.SequenceRecord if place == "record" else engine
    interrupts(monkeypatch, owner, "rewind")
    with pytest.raises(KeyboardInterrupt):
        run.rewind(0, 5)
    results = finish(run)
    want = model.generate(prompts[:2])
    assert written(results[1]) == written(want[1])
    if results[0].trace.error is None:
        assert written(results[0]) == written(uninterrupted("qwen3"))
    else:
        assert "interrupted in a pass or a call" in results[0].trace.error
    assert (place == "record") == (results[0].trace.error is not None)


def test_an_end_of_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = routed("qwen3")
    run = begun(model, prompts[:2], 14)
    interrupts(monkeypatch, record_module.SequenceRecord, "end_thinking")
    with pytest.raises(KeyboardInterrupt):
        run.end_thinking(0)
    results = finish(run)
    assert "interrupted in a pass or a call" in str(results[0].trace.error)
    assert results[1].trace.error is None


def test_a_look_at_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = routed("qwen3")
    run = begun(model, prompts[:1], 14)
    interrupts(monkeypatch, record_module, "step_so_far")
    with pytest.raises(KeyboardInterrupt):
        run.trace(0)
    assert written(finish(run)[0]) == written(uninterrupted("qwen3"))


def test_the_end_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told in part: the sequence ends with an error, and with a result."""
    model, prompts = routed("qwen3")
    run = begun(model, prompts[:2], 3)
    interrupts(monkeypatch, record_module, "step_so_far")
    results, interrupted = {}, 0
    while True:
        try:
            events = run.step()
        except KeyboardInterrupt:
            interrupted += 1
            continue
        if not events:
            break
        results.update({e.sequence: e.result for e in events if e.result is not None})
    assert interrupted == 1
    errors = [result.trace.error for result in results.values() if result.trace.error]
    assert len(results) == 2
    assert len(errors) == 1
    assert "interrupted while text was read" in errors[0]


def test_traces_are_read_by_another_thread() -> None:
    model, prompts = routed("qwen3")
    run = model.stream(prompts[:2])
    over = threading.Event()
    looked = []

    def look() -> None:
        while not over.is_set():
            looked.append(len(run.trace(0).steps) + len(run.generated(1)) + len(run.sequences))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        results = finish(run)
    finally:
        over.set()
        thread.join()
    assert looked
    for index, want in enumerate(model.generate(prompts[:2])):
        assert written(results[index]) == written(want)


def test_a_model_reads_once_for_all_forks() -> None:
    """What was read is shared; each fork computes the last token again."""
    model, prompts = routed("trained")
    model.drafts = 0
    computed: list[int] = []
    handle = model.large.register_forward_pre_hook(
        lambda _, arguments, named: computed.append(named["input_ids"].numel()), with_kwargs=True
    )
    run = model.stream(prompts[:1], route="small", answer_model="large")
    while not any(event.kind == "answer_start" for event in run.step()):
        pass
    assert computed == []
    run.catch_up(0)
    whole = sum(computed)
    forks = [run.fork(0) for _ in range(3)]
    computed.clear()
    run.step()
    handle.remove()
    assert whole > 60
    assert sum(computed) <= 1 + len(forks)
