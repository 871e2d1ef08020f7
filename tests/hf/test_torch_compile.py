"""Both models as compiled graphs: the tokens of the eager engine, two graphs each, no copies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

import glimprouter as gr
import hf_pairs
from glimprouter.hf import RoutedModel
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.attention.paged import paged_forward
from glimprouter.torch import operations

PAIR = hf_pairs.random_pair("qwen3", "llama")  # the small model is a Qwen3, the large one a Llama


def routed(execution: Any, **options: Any) -> RoutedModel:
    config = gr.RouterConfig(
        threshold=PAIR.threshold,
        temperature=0.0,
        repetition_guard=False,
        max_step_tokens=12,
        max_think_tokens=40,
        max_answer_tokens=8,
    )
    return RoutedModel(
        PAIR.small, PAIR.large, PAIR.tokenizer, config, execution=execution, **options
    )


@pytest.fixture(scope="module")
def compiled() -> RoutedModel:
    return routed("compiled", engine="paged")


def graphs(model: RoutedModel) -> list[int]:
    """Graphs that there are by now, of each model."""
    return [
        len(_debug_get_cache_entry_list(forward.function.__code__))
        for forward in model._compiled.values()
    ]


def test_tokens_and_routes_of_the_eager_engine(compiled: RoutedModel) -> None:
    """Prompts and batches of many sizes, one sequence alone too; nothing is compiled again."""
    assert graphs(compiled) == [2, 2]
    eager = routed("eager", engine="paged")
    writers: set[str] = set()
    for prompts in (PAIR.prompts, PAIR.prompts[:1], PAIR.prompts[2:4], [[70]]):
        want, got = eager.generate(prompts), compiled.generate(prompts)
        assert [r.token_ids for r in got] == [r.token_ids for r in want]
        steps = [[step.model for step in r.trace.steps] for r in want]
        assert [[step.model for step in r.trace.steps] for r in got] == steps
        writers.update(name for row in steps for name in row)
    assert writers == {"small", "large"}
    assert graphs(compiled) == [2, 2]


class Twin:
    """The same passes, compiled and eager, on pages of their own."""

    def __init__(self, compiled: RoutedModel, name: str) -> None:
        self.model = PAIR.model(name)
        self.forward = compiled._compiled[name]
        layout = kv_layout(self.model)
        self.pools = [gr.PagePool([layout], 200 * layout.page_bytes) for _ in range(2)]
        self.caches = [gr.KvCache(pool, 8) for pool in self.pools]

    def open(self, ids: list[int]) -> int:
        row, twin = (cache.open([ids]) for cache in self.caches)
        assert row == twin
        return row

    def difference(self, rows: list[int]) -> float:
        batches = [cache.prepare(0, rows) for cache in self.caches]
        got = self.forward(self.pools[0], batches[0])
        want = paged_forward(self.model, self.pools[1], batches[1])
        for cache, batch in zip(self.caches, batches, strict=True):
            cache.complete(batch)
        assert got.shape == want.shape
        return float((got - want).abs().max())


@pytest.mark.parametrize("name", ["small", "large"])
def test_logits_of_ragged_passes(compiled: RoutedModel, name: str) -> None:
    twin = Twin(compiled, name)
    generator = torch.Generator().manual_seed(4)

    def ids(count: int) -> list[int]:
        return torch.randint(40, 90, (count,), generator=generator).tolist()

    rows = [twin.open(ids(length)) for length in (1, 2, 16, 33, 90)]
    worst = max(twin.difference(rows[:1]), twin.difference(rows[1:]))
    for turn in range(24):
        chosen = rows[: 1 + turn % len(rows)]
        for row in chosen:
            count = 1 if turn % 2 else int(torch.randint(1, 20, (), generator=generator))
            tokens = ids(count)
            for cache in twin.caches:
                cache.append(0, row, tokens)
        worst = max(worst, twin.difference(chosen))
    assert 0 < worst < 1e-4
    assert graphs(compiled) == [2, 2]


def test_the_arena_is_written_in_place(
    compiled: RoutedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No layer gets a copy of it, in either graph."""
    seen: list[tuple[int, int]] = []

    def watch(arena: torch.Tensor, tables: Any, *rest: Any) -> None:
        seen.append((arena.data_ptr(), len(tables[0])))
        gr._C.attend_over(arena, tables, *rest)

    monkeypatch.setattr(operations, "_C", SimpleNamespace(attend_over=watch))
    twin = Twin(compiled, "large")
    row = twin.open([40] * 20)
    twin.difference([row])
    for cache in twin.caches:
        cache.append(0, row, [41])
    twin.difference([row])
    layers = PAIR.large.config.num_hidden_layers
    address = twin.pools[0].memory.ctypes.data
    assert seen == [(address, 20)] * layers + [(address, 1)] * layers


def test_the_models_are_left_as_they_were(compiled: RoutedModel) -> None:
    for model in (PAIR.small, PAIR.large):
        assert model.config._attn_implementation == "sdpa"
        with torch.inference_mode():
            assert model(torch.tensor([[40, 41]])).logits.isfinite().all()


def test_memory_of_a_run_is_let_go(compiled: RoutedModel) -> None:
    """Neither graphs nor guards keep an arena."""
    import weakref

    twin = Twin(compiled, "small")
    twin.difference([twin.open([40] * 5)])
    pool = weakref.ref(twin.pools[0])
    del twin
    assert pool() is None


def test_needs_pages() -> None:
    with pytest.raises(ValueError, match='execution="compiled" needs engine="paged"'):
        routed("compiled", engine="gather")


def test_code_that_cannot_be_compiled() -> None:
    """One clear error; the same pair runs without compiling."""
    handle = PAIR.small.model.layers[1].register_forward_hook(
        lambda *_: torch._dynamo.graph_break()
    )
    try:
        with pytest.raises(RuntimeError, match=r'small model cannot be compiled.*"eager"'):
            routed("compiled")
        assert routed("eager").generate(PAIR.prompts[:1])
    finally:
        handle.remove()
