"""Passes of several tokens as graphs on a device: which are replayed, and which are not.

On the emulator a replay runs the pass again, over the same buffers.
"""

from __future__ import annotations

import pytest
import torch

import glimprouter as gr
import hf_pairs
from device_pairs import DEVICES, pair_of, written
from glimprouter.hf.graphs import pass_graphs, sizes
from glimprouter.hf.graphs.fixed_pass import FixedPass
from recorded_graphs import CountingRecorder, graphs_of, routed

pytestmark = [
    pytest.mark.device,
    pytest.mark.needs_device,
    pytest.mark.filterwarnings("error:passes of the:RuntimeWarning"),
]


@pytest.mark.parametrize("device", DEVICES)
def test_drafts_are_verified_by_replays(
    device: str, recorders: list[CountingRecorder], eager_tokens: list[int]
) -> None:
    """Also what catches up, and prompts of up to so many tokens: no pass is eager."""
    model = pair_of("qwen3").small
    prompts = hf_pairs.raw_prompts((23, 5, 41))
    for models in (None, (model, model)):
        plain = routed(device, models=models, temperature=0.8, execution="eager")
        drafting = routed(device, models=models, temperature=0.8, drafts=4)
        for seed in (5, 6):
            want = written(plain.generate(prompts, seeds=seed))
            eager_tokens.clear()
            results = drafting.generate(prompts, seeds=seed)
            assert written(results) == want
            assert eager_tokens == []
            assert sum(result.counts["small"].drafted for result in results) > 10
    assert sum(result.counts["small"].accepted for result in results) > 10
    assert recorders[0].replays > 10
    several = [size for size in graphs_of(drafting)["large"].captured if size.most_tokens > 1]
    assert any(size.wanted == size.tokens for size in several)  # the logits of all drafts


@pytest.mark.parametrize("device", DEVICES)
def test_long_pieces_are_eager(
    device: str,
    recorders: list[CountingRecorder],
    eager_tokens: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts beyond the largest size, and pieces that see many keys, which run apart."""
    prompts = hf_pairs.raw_prompts((270, 40, 9))
    want = written(routed(device, execution="eager").generate(prompts))
    eager_tokens.clear()
    assert written(routed(device).generate(prompts)) == want
    assert len(eager_tokens) == 2  # the longest prompt, once a model; the others are replays
    assert all(270 <= tokens < 280 for tokens in eager_tokens)
    monkeypatch.setattr(sizes, "MOST_SEEN", 40 * 40 - 1)
    eager_tokens.clear()
    assert written(routed(device).generate(prompts)) == want
    assert sum(tokens >= 40 for tokens in eager_tokens) == len(eager_tokens)
    assert sum(eager_tokens) >= 2 * (270 + 40)  # two prompts of each model


@pytest.mark.parametrize("device", DEVICES)
def test_sizes_that_were_not_asked_for_longest_go(
    device: str, recorders: list[CountingRecorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_graphs, "_MOST_SIZES", 2)
    prompts = hf_pairs.raw_prompts((23, 5, 41, 12))
    eager, model = routed(device, execution="eager"), routed(device, drafts=2)
    assert written(model.generate(prompts)) == written(eager.generate(prompts))
    for graphs in graphs_of(model).values():
        assert len(graphs._buckets) == 2
    kept = sum(len(graphs.captured) for graphs in graphs_of(model).values())
    assert len(recorders[0].rows) > kept
    assert recorders[0].replays > 3
    graphs = graphs_of(model)["small"]
    graphs._buckets.clear()
    cache = gr.KvCache(graphs._pool, 4)
    rows = [cache.open([prompt] * 2) for prompt in ([1], [1, 2], [1, 2, 3])]
    for chosen in (0, 1, 0, 2):  # the one asked for before last stays
        batch = cache.prepare(0, rows[chosen : chosen + 1])
        graphs._bucket_of(batch, 1)
        cache.abandon(batch)
    assert [size.tokens for size in graphs._buckets] == [1, 4]
    for row in rows:
        cache.close(row)


@pytest.mark.parametrize("device", DEVICES)
def test_a_size_without_memory_bars_those_as_large(
    device: str, recorders: list[CountingRecorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smaller ones, and decode passes, are replayed as ever."""
    prompts = hf_pairs.raw_prompts((23, 5, 41))
    want = written(routed(device, execution="eager").generate(prompts))
    model = routed(device)
    forward = FixedPass.forward

    def short(fixed: FixedPass) -> torch.Tensor:
        if fixed.size.tokens >= 32 and fixed.size.most_tokens > 1:
            raise torch.OutOfMemoryError("no room for as much")
        return forward(fixed)

    monkeypatch.setattr(FixedPass, "forward", short)
    with pytest.warns(
        RuntimeWarning, match=r"passes of \d+ tokens or more of the .* no room"
    ) as seen:
        assert written(model.generate(prompts)) == want
    named = {str(warning.message).split(" model")[0].split()[-1] for warning in seen}
    assert named == {"small", "large"}
    assert recorders[0].replays > 10
    for graphs in graphs_of(model).values():
        assert graphs.refused is None
        assert max(size.tokens for size in graphs._buckets) <= 16
