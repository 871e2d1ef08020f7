"""A pair whose steps run and whose pages lie on a device: what the CPU does, done there.

On the emulator the models compute on the CPU, in the memory that the device works on.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import glimprouter as gr
import hf_pairs
from device_pairs import DEVICES, pair_of, written
from glimprouter.hf import RoutedModel
from glimprouter.hf.attention.gathered import gathered_attention, gathers
from glimprouter.hf.pair.devices import choose_devices, torch_device
from glimprouter.policies import EntropyThreshold, RandomShare
from glimprouter.torch import AttentionOptions

ENTROPY_TOLERANCE = 1e-3  # prompts are attended by torch there, by our kernel here
FAMILIES = ("qwen3", "gemma2", "gemma3")

pytestmark = [
    pytest.mark.device,
    pytest.mark.needs_device,
    pytest.mark.filterwarnings("error:passes of the:RuntimeWarning"),
]


def routed(family: str, device: str, engine: str, drafts: int = 0, **config: Any) -> RoutedModel:
    pair = pair_of(family)
    options = {"temperature": 0.0, "repetition_guard": False, "max_step_tokens": 6, **config}
    options = {"max_think_tokens": 20, "max_answer_tokens": 4, **options}
    home = torch_device(device)
    models = [m if home == "cpu" else copy.deepcopy(m).to(home) for m in (pair.small, pair.large)]
    return RoutedModel(
        *models,
        pair.tokenizer,
        gr.RouterConfig(threshold=pair.threshold, **options),
        engine=engine,  # type: ignore[arg-type]
        device=device,
        drafts=drafts,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_pages_on_a_device(family: str, device: str) -> None:
    """The longest prompt is attended by gathering, the others over pages."""
    prompts = pair_of(family).prompts[:3]
    want = routed(family, "cpu", "paged").generate(prompts)
    got = routed(family, device, "paged").generate(prompts)
    assert written(got) == written(want)
    for one, other in zip(got, want, strict=True):
        for step, expected in zip(one.trace.steps, other.trace.steps, strict=True):
            assert step.entropy == pytest.approx(expected.entropy, abs=ENTROPY_TOLERANCE)
    assert {step.model for result in got for step in result.trace.steps} == {"small", "large"}


@pytest.mark.parametrize("device", [d for d in DEVICES if d.startswith("simt")])
def test_steps_alone_give_the_same_bits(device: str) -> None:
    """The same models over copies: only the steps run on the device."""
    prompts = hf_pairs.random_pair("llama").prompts[:3]
    options = {"temperature": 0.8, "top_p": 0.9}
    want = routed("llama", "cpu", "gather", **options).generate(prompts)
    got = routed("llama", device, "gather", **options).generate(prompts)
    assert written(got) == written(want)
    entropies = [[[s.entropy for s in r.trace.steps] for r in results] for results in (got, want)]
    assert entropies[0] == entropies[1]


@pytest.mark.parametrize("engine", ["paged", "gather"])
@pytest.mark.parametrize("device", DEVICES)
def test_drafts_on_a_device(device: str, engine: str) -> None:
    prompts = hf_pairs.random_pair("llama").prompts[:3]
    options = {"temperature": 0.8, "top_p": 0.9, "route": "large"}
    want = routed("llama", device, engine, **options).generate(prompts)
    got = routed("llama", device, engine, drafts=4, **options).generate(prompts)
    assert written(got) == written(want)
    there, here = (
        [result.counts["small"] for result in results]
        for results in (got, routed("llama", "cpu", engine, drafts=4, **options).generate(prompts))
    )
    assert there == here, "the device drafts and takes what the CPU does"
    assert sum(own.drafted for own in there) > 10


@pytest.mark.parametrize("device", DEVICES)
def test_forked_rewound_and_saved_there(device: str) -> None:
    model = routed("qwen3", device, "paged", temperature=0.8)
    prompt = hf_pairs.random_pair("qwen3").prompts[1]
    want = written(model.generate([prompt]))[0]
    run = model.stream([prompt])
    for _ in range(9):
        run.step()
    twin = run.fork(0, substream=0)
    saved = run.save(0)
    run.rewind(0, 2)
    results = {event.sequence: event.result for event in run if event.result is not None}
    resumed = [event.result for event in model.resume([saved]) if event.result is not None]
    assert written([results[0], results[twin], *resumed]) == [want] * 3


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("engine", ["gather", "paged"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_policy_decides_there_as_the_router_does(device: str, engine: str, drafts: int) -> None:
    pair = pair_of("qwen3")
    model = routed("qwen3", device, engine, drafts)
    want = written(model.generate(pair.prompts))
    model.policy = EntropyThreshold(pair.threshold)
    assert written(model.generate(pair.prompts)) == want
    model.policy = RandomShare(0.5)
    first = written(model.generate(pair.prompts))
    assert first != want
    assert written(model.generate(pair.prompts)) == first


@pytest.mark.parametrize("window", [0, 1, 9, 40, 500])
@pytest.mark.parametrize("device", DEVICES)
def test_gathering_attends_as_the_pages_do(device: str, window: int) -> None:
    """Several sequences, some of them half computed before, pages partly filled."""
    layout = gr.KvLayout(num_layers=2, num_kv_heads=2, head_dim=32, page_size=16, dtype="float32")
    pool = gr.PagePool([layout], 60 * layout.page_bytes, layout.page_bytes, device)
    cache = gr.KvCache(pool, 3)
    rows = [cache.open([list(range(count))]) for count in (1, 50, 17)]
    generator = torch.Generator().manual_seed(1)
    home = torch_device(device)
    for more in (0, 40):
        for row in rows[:2] if more else ():
            cache.append(0, row, list(range(more + row)))
        batch = cache.prepare(0, rows[:2] if more else rows)
        tokens = len(batch.ids)
        keys, values = torch.randn((2, 1, 2, tokens, 32), generator=generator).to(home)
        query = torch.randn((1, 4, tokens, 32), generator=generator).to(home)
        gr.append_kv(pool, 1, batch, keys, values)
        outs = [torch.full((1, tokens, 4, 32), torch.nan, device=home) for _ in range(2)]
        gr.paged_attention(pool, 1, batch, query, outs[0], scale=0.2, window=window)
        assert gathers(pool, batch, AttentionOptions(0.2))
        assert not gathers(pool, batch, AttentionOptions(0.2, softcap=2.0))
        assert not gathers(pool, batch, AttentionOptions(0.2, sinks=torch.zeros(4)))
        gathered_attention(pool, 1, batch, query, outs[1], AttentionOptions(0.2, window))
        assert torch.allclose(*outs, atol=2e-6, rtol=1e-5)
        cache.complete(batch)


@pytest.mark.parametrize("device", DEVICES)
def test_models_that_are_elsewhere_are_refused(device: str) -> None:
    pair = {name: SimpleNamespace(device="xpu:0") for name in ("small", "large")}
    with pytest.raises(ValueError, match="needs the models there, they are on"):
        choose_devices(device, pair)
