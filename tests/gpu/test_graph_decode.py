"""Passes as CUDA graphs: logits of replays against eager passes, and models that refuse.

What a pair writes by replays is in tests/device/test_graphs.py, which runs here too.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import glimprouter as gr
import hf_pairs
from glimprouter.hf import RoutedModel
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.attention.paged import paged_forward
from glimprouter.hf.graphs import sizes
from glimprouter.hf.graphs.pass_graphs import PassGraphs
from glimprouter.hf.graphs.recorders import CudaRecorder, Recording
from glimprouter.hf.graphs.sizes import PassSize

pytestmark = pytest.mark.gpu

CUDA = "cuda:0"
# Root mean square of the difference over the spread of the logits: matrix products of padded
# batches may round otherwise.
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.01}


def random_qwen3(dtype: torch.dtype, layers: int = 3) -> Any:
    """Heads and groups as in the models that matter, everything else small."""
    config = Qwen3Config(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=4096,
        initializer_range=0.05,
        tie_word_embeddings=False,
    )
    torch.manual_seed(4)
    with torch.device(CUDA):
        return Qwen3ForCausalLM(config).to(dtype).eval()


class Twin:
    """The same passes, as graphs and eagerly, on pages of their own."""

    def __init__(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sizes, "_FEWEST_PAGES", 2)
        self.model = random_qwen3(dtype)
        layout = kv_layout(self.model)
        sector = layout.page_bytes
        self.pools = [gr.PagePool([layout], 300 * sector, sector, CUDA) for _ in range(2)]
        self.caches = [gr.KvCache(pool, 8) for pool in self.pools]
        recorder = CudaRecorder(CUDA)
        self.graphs = PassGraphs("tested", self.model, self.pools[0], 0, 6, recorder)
        self.generator = torch.Generator().manual_seed(2)

    def ids(self, count: int) -> list[int]:
        return torch.randint(0, 2048, (count,), generator=self.generator).tolist()

    def open(self, count: int) -> int:
        prompt = self.ids(count)
        row, twin = (cache.open([prompt]) for cache in self.caches)
        assert row == twin
        return row

    def passes(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of both."""
        ours, eager = (cache.prepare(0, rows) for cache in self.caches)
        rows = ours.last_rows
        if self.graphs.takes(ours, len(rows)):
            got = self.graphs(ours, rows).clone()
        else:
            got = paged_forward(self.model, self.pools[0], ours)
        want = paged_forward(self.model, self.pools[1], eager)
        for cache, batch in zip(self.caches, (ours, eager), strict=True):
            cache.complete(batch)
        return got, want

    def decode(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        for row in rows:
            token = self.ids(1)
            for cache in self.caches:
                cache.append(0, row, token)
        return self.passes(rows)


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    got, want = got.float(), want.float()
    return float((got - want).square().mean().sqrt() / want.std())


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_replays_give_the_logits_of_eager_passes(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences come and go, contexts grow over the sizes; prompts need ever more memory."""
    twin = Twin(dtype, monkeypatch)
    rows = [twin.open(3), twin.open(100)]
    assert difference(*twin.passes(rows)) < TOLERANCE[dtype]
    worst, same, compared = 0.0, 0, 0
    for turn in range(60):
        if turn in (12, 24, 36):
            rows.append(twin.open(60 * turn))  # a long prompt: the eager workspace is moved
            assert difference(*twin.passes(rows[-1:])) < TOLERANCE[dtype]
        if turn == 50:
            gone = rows.pop(0)
            for cache in twin.caches:
                cache.close(gone)
        chosen = rows[turn % 2 :] if turn % 3 == 0 else rows
        got, want = twin.decode(chosen)
        worst = max(worst, difference(got, want))
        compared += 1
        same += torch.equal(got, want)
    print(f"{dtype}: {same} of {compared} passes the same to the bit, worst {worst:.2g}")
    assert len(twin.graphs.captured) >= 4
    assert {size.sequences for size in twin.graphs.captured} >= {2, 4}
    assert twin.graphs.refused is None
    assert worst < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_passes_of_several_tokens_are_replayed(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that catch up among rows that decode, with the logits of all tokens or of the last."""
    twin = Twin(dtype, monkeypatch)
    rows = [twin.open(3), twin.open(100), twin.open(700)]
    twin.passes(rows)
    for turn in range(24):
        for place, row in enumerate(rows):
            ids = twin.ids(1 + (turn * (place + 3)) % 11)
            for cache in twin.caches:
                cache.append(0, row, ids)
        ours, eager = (cache.prepare(0, rows) for cache in twin.caches)
        wanted = ours.last_rows if turn % 2 else np.arange(len(ours.ids), dtype=np.int32)
        assert twin.graphs.takes(ours, len(wanted))
        got = twin.graphs(ours, wanted).clone()
        want = paged_forward(twin.model, twin.pools[1], eager, None, wanted)
        assert difference(got, want) < TOLERANCE[dtype]
        for cache, batch in zip(twin.caches, (ours, eager), strict=True):
            cache.complete(batch)
    assert sum(size.most_tokens > 1 for size in twin.graphs.captured) >= 3
    assert twin.graphs.refused is None


def test_the_largest_size_is_the_batch_that_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = Twin(torch.bfloat16, monkeypatch)
    rows = [twin.open(5 + index) for index in range(6)]
    twin.passes(rows)
    for _ in range(5):
        assert difference(*twin.decode(rows)) < TOLERANCE[torch.bfloat16]
    assert twin.graphs.captured == [PassSize(6, 6, 2, 6, 1)]


def test_replays_follow_the_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured on one stream, replayed on others; eager passes of the same pages in between."""
    twin = Twin(torch.bfloat16, monkeypatch)
    rows = [twin.open(70)]
    twin.passes(rows)
    streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    for turn in range(18):
        torch.cuda.synchronize()
        with torch.cuda.stream(streams[turn % 3]):
            got, want = twin.decode(rows)
            assert difference(got, want) < TOLERANCE[torch.bfloat16]
    assert twin.graphs.captured == [PassSize(1, 1, 2, 1, 1)]


def test_a_capture_refuses_to_be_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = Twin(torch.bfloat16, monkeypatch)
    row = twin.open(1)
    batch = twin.caches[0].prepare(0, [row])
    bucket = twin.graphs._bucket_of(batch, 1)
    bucket.fixed.fill(batch, batch.last_rows)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match="while a graph is captured"):
        bucket.fixed.fill(batch, batch.last_rows)


def test_graphs_are_captured_again_after_the_last_one_is_gone() -> None:
    """Those that are left share their pool with the next ones."""
    recorder = CudaRecorder(CUDA)
    source = torch.arange(4.0, device=CUDA)

    def check(factor: int) -> Recording:
        def run() -> torch.Tensor:
            return (source + 1) * factor

        recorder.rehearse(run)
        torch.cuda.synchronize()
        recording = recorder.record(run)
        recording.replay()
        assert torch.equal(recording.result, run())
        return recording

    first, second = check(2), check(3)
    shared = recorder._pool
    del first
    third = check(4)
    assert recorder._pool == shared
    second.replay()
    assert torch.equal(second.result, (source + 1) * 3)
    del second, third
    for factor in (5, 6):  # gone at once
        check(factor)
    assert recorder._pool != shared


def pair_on_gpu(hook: Any) -> RoutedModel:
    """Two random models of whose layers one is watched; nothing is drawn."""
    pair = hf_pairs.random_pair("qwen3")
    models = [copy.deepcopy(model).to(CUDA) for model in (pair.small, pair.large)]
    for model in models:
        model.model.layers[1].register_forward_hook(hook)
    config = gr.RouterConfig(
        threshold=pair.threshold,
        temperature=0.0,
        repetition_guard=False,
        max_step_tokens=6,
        max_think_tokens=30,
        max_answer_tokens=4,
    )
    return RoutedModel(*models, pair.tokenizer, config, engine="paged", drafts=0)


def waits_for_a_number(_module: Any, _arguments: Any, output: Any) -> None:
    states = output[0] if isinstance(output, tuple) else output
    assert states.abs().max().item() >= 0


def waits_for_everything(*_: Any) -> None:
    torch.cuda.synchronize()


@pytest.mark.parametrize("hook", [waits_for_a_number, waits_for_everything])
def test_models_that_wait_are_computed_eagerly(hook: Any) -> None:
    """And the next pair is captured as ever: a capture that breaks leaves nothing behind."""
    prompts = hf_pairs.raw_prompts((23, 5))
    plain = pair_on_gpu(lambda *_: None)
    want = [result.token_ids for result in plain.generate(prompts)]
    model = pair_on_gpu(hook)
    with pytest.warns(RuntimeWarning, match="computed eagerly, not as graphs"):
        got = [result.token_ids for result in model.generate(prompts)]
    assert got == want
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [result.token_ids for result in model.generate(prompts)] == want
        again = pair_on_gpu(lambda *_: None)
        assert [result.token_ids for result in again.generate(prompts)] == want
    kept = again._engines._kept
    assert any(graphs.captured for graphs in kept[CUDA]._graphs.values())
    assert torch.rand(3, device=CUDA).isfinite().all()
