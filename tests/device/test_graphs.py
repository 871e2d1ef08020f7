"""Passes of a pair as graphs on a device: what they write, and when they are captured.

On the emulator a replay runs the pass again, over the same buffers.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

import glimprouter as gr
import hf_pairs
from device_pairs import DEVICES, pair_of, written
from families import build
from glimprouter.hf.attention import paged
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.graphs.compiled_pass import CompiledPass
from glimprouter.hf.graphs.fixed_pass import FixedPass
from glimprouter.hf.graphs.sizes import PassSize
from glimprouter.hf.pair.devices import torch_device
from glimprouter.torch import AttendingPass, AttentionOptions
from recorded_graphs import CountingRecorder, graphs_of, routed

# A capture that failed has the same tokens, computed eagerly: only the warning tells.
pytestmark = [
    pytest.mark.device,
    pytest.mark.needs_device,
    pytest.mark.filterwarnings("error:passes of the:RuntimeWarning"),
]


# Keys and values only; states in slots beside them.
FAMILIES = ("qwen3", "hybrid")


@pytest.mark.parametrize("family", ["deepseek_v3", "gemma4_text", "kimi_linear", "llama4_text"])
@pytest.mark.parametrize("device", DEVICES)
def test_layers_of_many_shapes(device: str, family: str, recorders: list[CountingRecorder]) -> None:
    """Latent vectors, heads of two sizes and shared ones, chunks; beside states, too."""
    models = build(family, seed=1), build(family, seed=2)
    eager = routed(device, models=models, execution="eager")
    graphs = routed(device, models=models)
    assert graphs.execution == "graphs"
    prompts = hf_pairs.raw_prompts((23, 5, 41))
    assert written(graphs.generate(prompts)) == written(eager.generate(prompts))
    assert recorders[0].replays > 10


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "hybrid"])
@pytest.mark.parametrize("device", DEVICES)
def test_tokens_and_routes_of_eager_passes(
    device: str, family: str, recorders: list[CountingRecorder]
) -> None:
    """Batches of one, three and eight; sequences end one after the other."""
    eager, graphs = routed(device, family, execution="eager"), routed(device, family)
    assert (graphs.execution, eager.execution) == ("graphs", "eager")
    prompts = hf_pairs.raw_prompts((23, 5, 41, 12, 2, 67, 31, 17))
    for count in (1, 3, 8):
        assert written(graphs.generate(prompts[:count])) == written(eager.generate(prompts[:count]))
    (recorder,) = recorders  # none of the eager pair
    assert set(recorder.rows) >= {1, 2, 4, 8}
    assert recorder.replays > 3 * len(recorder.rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_a_second_run_captures_nothing_again(
    device: str, family: str, recorders: list[CountingRecorder]
) -> None:
    """A size that comes up for the third time only in a later run is captured there."""
    model, prompts = routed(device, family), pair_of(family).prompts[:3]
    first = written(model.generate(prompts))
    sizes = {name: set(graphs.captured) for name, graphs in graphs_of(model).items()}
    assert all(sizes.values())
    for _ in range(3):
        assert written(model.generate(prompts)) == first
    for name, graphs in graphs_of(model).items():
        assert sizes[name] <= set(graphs.captured)
    recorded = len(recorders[0].rows)
    assert recorded == sum(len(graphs.captured) for graphs in graphs_of(model).values())
    replays = recorders[0].replays
    assert written(model.generate(prompts)) == first
    assert len(recorders[0].rows) == recorded
    assert recorders[0].replays > replays


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_runs_side_by_side_have_pools_of_their_own(
    device: str, family: str, recorders: list[CountingRecorder]
) -> None:
    model, prompts = routed(device, family), pair_of(family).prompts
    want = [written(model.generate([prompt]))[0] for prompt in prompts[:2]]
    runs = [model.stream([prompt]) for prompt in prompts[:2]]
    got: dict[int, Any] = {}
    while len(got) < 2:
        for index, run in enumerate(runs):
            for event in run.step():
                if event.result is not None:
                    got[index] = written([event.result])[0]
    assert [got[index] for index in range(2)] == want


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_a_longer_run_has_a_larger_pool(
    device: str, family: str, recorders: list[CountingRecorder]
) -> None:
    model, eager = routed(device, family), routed(device, family, execution="eager")
    short = [[40, 41, 42]]
    long = hf_pairs.raw_prompts((150, 90, 170))
    for prompts in (short, long, short):
        assert written(model.generate(prompts)) == written(eager.generate(prompts))


@pytest.mark.parametrize("device", DEVICES)
def test_preempted_sequences_go_on(device: str, recorders: list[CountingRecorder]) -> None:
    """The second model has as little memory as one long sequence needs, and a few pages more."""
    prompts = pair_of("qwen3").prompts[:4]
    want = written(routed(device).generate(prompts))
    layouts = [kv_layout(pair_of("qwen3").model(n)) for n in ("small", "large")]
    sector = gr.PagePool.default_sector_bytes(layouts)
    tight = routed(device, kv_memory_bytes=14 * sector)
    assert written(tight.generate(prompts)) == want
    roomy = routed(device)
    assert written(roomy.generate(prompts)) == want
    roomy.kv_memory_bytes = 14 * sector  # the pool that is kept is larger
    assert written(roomy.generate(prompts)) == want


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_forked_rewound_and_saved_among_replays(
    device: str, family: str, recorders: list[CountingRecorder]
) -> None:
    model = routed(device, family, temperature=0.8)
    prompt = pair_of(family).prompts[1]
    want = written(model.generate([prompt]))[0]
    run = model.stream([prompt])
    for _ in range(17):
        run.step()
    twin = run.fork(0, substream=0)
    saved = run.save(0)
    run.rewind(0, 5)
    results = {event.sequence: event.result for event in run if event.result is not None}
    resumed = [event.result for event in model.resume([saved]) if event.result is not None]
    assert written([results[0], results[twin], *resumed]) == [want] * 3
    assert recorders[0].replays


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_weights_that_have_moved_void_the_graphs(
    device: str, family: str, recorders: list[CountingRecorder]
) -> None:
    model, prompts = routed(device, family), pair_of(family).prompts[:1]
    want = written(model.generate(prompts))
    captured = len(recorders[0].rows)
    with torch.no_grad():
        for parameter in model.small.parameters():
            parameter.data = parameter.data.clone()
    assert written(model.generate(prompts)) == want
    assert len(recorders[0].rows) == 2 * captured


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_the_memory_goes_with_the_model(
    device: str, family: str, recorders: list[CountingRecorder]
) -> None:
    model = routed(device, family)
    model.generate(pair_of(family).prompts[:1])
    graphs = weakref.ref(graphs_of(model)["small"])
    assert graphs() is not None
    del model
    gc.collect()
    assert graphs() is None


@pytest.mark.parametrize("stage", ["rehearse", "record"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_what_cannot_be_captured_is_computed_eagerly(
    device: str,
    family: str,
    stage: str,
    recorders: list[CountingRecorder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same tokens, and one warning for each model that says why."""
    prompts = pair_of(family).prompts[:3]
    want = written(routed(device, family, execution="eager").generate(prompts))
    model = routed(device, family)

    def refuse(run: Callable[[], torch.Tensor]) -> Any:
        run()
        raise RuntimeError("its code waits for the device\nand more")

    monkeypatch.setattr(recorders[0], stage, refuse)
    with pytest.warns(RuntimeWarning, match="computed eagerly, not as graphs: its code w") as seen:
        assert written(model.generate(prompts)) == want
    messages = {str(warning.message) for warning in seen}
    assert {message.split(" model")[0].split()[-1] for message in messages} == {"small", "large"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert written(model.generate(prompts)) == want
    assert recorders[0].rows == []


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_passes_are_captured(
    device: str, recorders: list[CountingRecorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens of the model's own code; two compilations of a model serve every size and run.

    Code is generated on a GPU only. One layer and one model for both, as compiling takes long.
    """
    if not device.startswith("cuda"):
        traced = partial(CompiledPass, backend="eager")
        monkeypatch.setattr("glimprouter.hf.graphs.compiled_pass.CompiledPass", traced)
    models = (hf_pairs.random_model("qwen3", 1, 7),) * 2
    eager = routed(device, models=models, execution="eager")
    compiled = routed(device, models=models, execution="compiled")
    (decode,) = {*compiled._engines._kept[device]._compiled.values()}

    def compilations() -> int:
        return len(_debug_get_cache_entry_list(decode.function.__code__))  # type: ignore[attr-defined]

    assert compilations() == 2
    prompts = hf_pairs.raw_prompts((23, 5, 41, 12, 2))
    for chosen in (prompts, prompts[:1], prompts[1:4], prompts):
        assert written(compiled.generate(chosen)) == written(eager.generate(chosen))
    assert {1, 2, 4, 8} <= set(recorders[0].rows)
    assert compilations() == 2


@pytest.mark.parametrize("device", DEVICES)
def test_a_decode_pass_attends_as_other_passes_do(device: str) -> None:
    """Scale, window, softcap and sinks reach its kernels."""
    model, home = hf_pairs.random_model("qwen3", 1, 7), torch_device(device)
    layout = kv_layout(model)
    size = layout.layers[0].head_dim
    outs = []
    for padded in (True, False):
        generator = torch.Generator().manual_seed(3)

        def heads(count: int, tokens: int, draw: torch.Generator = generator) -> torch.Tensor:
            return torch.randn((1, count, tokens, size), generator=draw).to(home)

        pool = gr.PagePool([layout], 4 * layout.page_bytes, layout.page_bytes, device)
        cache = gr.KvCache(pool, 1)
        row = cache.open([[40] * 9])
        batch = cache.prepare(0, [row])
        gr.append_kv(pool, 0, batch, heads(2, 9), heads(2, 9))
        cache.complete(batch)
        cache.append(0, row, [41])
        batch = cache.prepare(0, [row])
        attending: AttendingPass = paged.PagedPass(pool, batch)
        if padded:
            attending = FixedPass(
                SimpleNamespace(config=model.config, device=home), pool, 0, PassSize(1, 1, 1, 1, 1)
            )
            attending.fill(batch, batch.last_rows)
        query, key, value = heads(4, 1), heads(2, 1), heads(2, 1)
        sinks = torch.tensor([0.5, -1.0, 3.0, 1.0], device=home)
        for options in (
            AttentionOptions(0.3),
            AttentionOptions(0.2),
            AttentionOptions(0.3, window=4),
            AttentionOptions(0.3, softcap=1.0),
            AttentionOptions(0.3, sinks=sinks),
        ):
            outs.append(attending.attend(0, query, key, value, options).cpu())
    half = len(outs) // 2
    for got, want in zip(outs[:half], outs[half:], strict=True):
        assert torch.equal(got, want)
    assert len({tuple(out.flatten().tolist()) for out in outs}) == half


@pytest.mark.parametrize("device", DEVICES)
def test_strides_of_ids_and_positions_follow_from_the_size(device: str) -> None:
    """Compilers see strides: those of odd and even sizes would be compiled apart."""
    model = hf_pairs.random_model("qwen3", 1, 7)
    layout = kv_layout(model)
    pool = gr.PagePool([layout], 4 * layout.page_bytes, layout.page_bytes, device)
    home = SimpleNamespace(config=model.config, device=torch_device(device))
    for size in range(1, 9):
        fixed = FixedPass(home, pool, 0, PassSize(size, size, 1, size, 1))
        for column in (fixed._ids, fixed._positions):
            assert column.shape == (1, size)
            assert column.stride() == (size, 1)
            assert column.data_ptr() % 16 == 0
