"""Memory of states in caches of the models' own: bounded, and nothing is lost when it is short."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hf_pairs
from glimprouter.hf import RoutedModel
from glimprouter.hf.engine.gather import GatherEngine
from glimprouter.hf.engine.native_state import bytes_of
from hf_runs import written

NAMES = ("hybrid", "qwen3")  # states of a fixed size, and keys and values that grow


def pair_with(name: str, memory: int | None, engine: str = "native") -> RoutedModel:
    pair = hf_pairs.random_pair(name)
    config = pair.routed(max_think_tokens=50).config
    return RoutedModel(
        pair.small,
        pair.large,
        pair.tokenizer,
        config,
        engine=engine,
        kv_memory_bytes=memory,
        state_snapshots=2,
    )


def most_held(model: RoutedModel, prompts: list[Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes before a pass, over all of a run."""
    most = [0]
    own = GatherEngine._compute

    def watch(self: GatherEngine, *arguments: Any) -> torch.Tensor:
        logits = own(self, *arguments)
        most.append(self._held_bytes())
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(GatherEngine, "_compute", watch)
        model.generate(prompts)
    return max(most)


@pytest.mark.parametrize("name", NAMES)
def test_preempted_sequences_lose_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in memory need `together`, the largest alone `alone`: between the two, some wait."""
    prompts = hf_pairs.raw_prompts((23, 5, 41, 12))
    free = pair_with(name, None)
    want = free.generate(prompts)
    together = most_held(free, prompts, monkeypatch)
    alone = max(most_held(free, [prompt], monkeypatch) for prompt in prompts)
    preempted: list[int] = []
    own = GatherEngine.preempt
    monkeypatch.setattr(
        GatherEngine,
        "preempt",
        lambda self, record: (preempted.append(record.index), own(self, record))[1],
    )
    for memory in (alone, (alone + together) // 2):
        preempted.clear()
        got = pair_with(name, memory).generate(prompts)
        assert [written(result) for result in got] == [written(result) for result in want]
        assert preempted
        assert 0 not in preempted, "the oldest always goes on"
    preempted.clear()
    pair_with(name, 2 * together).generate(prompts)
    assert not preempted


def test_one_that_outgrows_the_memory_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on."""
    prompts = hf_pairs.raw_prompts((400, 5, 12))
    free = pair_with("qwen3", None)
    want = free.generate(prompts[1:])
    memory = most_held(free, prompts[1:], monkeypatch)
    got = pair_with("qwen3", memory).generate(prompts)
    assert "more than kv_memory_bytes" in str(got[0].trace.error)
    assert [written(result) for result in got[1:]] == [written(result) for result in want]


@pytest.mark.parametrize("name", NAMES)
def test_saved_sequences_wait_for_room(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded behind others that were preempted, and begun by a call while they wait."""
    prompts = hf_pairs.raw_prompts((23, 5, 41))
    free = pair_with(name, None)
    want = [written(result) for result in free.generate(prompts)]
    run = free.stream(prompts)
    while any(len(run.generated(index)) < 12 for index in range(len(prompts))):
        run.step()
    saved = [run.save(index) for index in range(len(prompts))]
    alone = max(most_held(free, [prompt], monkeypatch) for prompt in prompts)
    tight = pair_with(name, alone)
    results = {e.sequence: e.result for e in tight.resume(saved) if e.result is not None}
    assert [written(results[index]) for index in range(len(prompts))] == want
    late = tight.stream(prompts[:1])
    late.step()
    for each in saved[1:]:
        late.load(each)
    late.rewind(2, 3)
    results = {e.sequence: e.result for e in late if e.result is not None}
    assert [written(results[index]) for index in range(len(prompts))] == want


def test_what_is_gathered_is_not_bounded() -> None:
    pair = pair_with("qwen3", 1 << 20, "gather")
    with pytest.warns(RuntimeWarning, match="what is gathered takes the memory that it needs"):
        pair.generate([[40, 41, 42]])


def test_bytes_are_those_of_the_tensors() -> None:
    """Views of one tensor are one; objects, lists and dicts are looked into."""

    class Holder:
        def __init__(self, *values: Any) -> None:
            self.values = list(values)
            self.named = {"again": values[0]}

    base = torch.zeros(10, 4)
    assert bytes_of([Holder(base, base[2:], torch.zeros(3)), None, 5]) == 160 + 12
