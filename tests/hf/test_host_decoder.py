"""A decoder's layers in one native call: whose they are, what they compute, and in which bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaForCausalLM

from glimprouter import RouterConfig
from glimprouter.hf import RoutedModel
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.decoder import host_pass
from glimprouter.hf.decoder.host_pass import HostDecoderPass, find_host_pass
from glimprouter.hf.engine.choice import choose_engine
from glimprouter.kv import KvCache, PagePool, RaggedBatch
from hf_pairs import trained_pair
from tiny_models import tiny

FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama, tied": (LlamaConfig, {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "mistral, a window": (MistralConfig, {"sliding_window": 7}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
    "yarn": (
        Qwen3Config,
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    ),
}
OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "norms behind": (Gemma2Config, {}),
    "multipliers": (GraniteConfig, {"embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
    "layers without positions": (SmolLM3Config, {}),
    "another activation": (LlamaConfig, {"hidden_act": "gelu"}),
    "a bias beside the residual": (LlamaConfig, {"attention_bias": True}),
    "rows of odd sizes": (LlamaConfig, {"intermediate_size": 100}),
    "angles by length": (
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "factor": 2.0,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 64,
            }
        },
    ),
}


def found(model: Any) -> HostDecoderPass:
    own = find_host_pass(model)
    assert own is not None
    return own


class Rows:
    """Sequences on small pages; a pass brings some of them further, each by as many as are there.

    Attributes:
        logits: Of every token so far, of each sequence.
    """

    def __init__(self, model: Any, own: HostDecoderPass, count: int) -> None:
        layout = kv_layout(model)
        small = type(layout)(layers=layout.layers, page_size=4, dtype="float32")
        self._pool = PagePool([small], 40 * count * small.page_bytes, small.page_bytes)
        self._cache = KvCache(self._pool, count)
        self._own = own
        self._opened: dict[int, int] = {}
        self.logits: dict[int, list[torch.Tensor]] = {row: [] for row in range(count)}

    def go_on(self, pieces: dict[int, Sequence[int]]) -> None:
        for row, piece in pieces.items():
            if row in self._opened:
                self._cache.append(0, self._opened[row], list(piece))
            else:
                self._opened[row] = self._cache.open([list(piece)])
        batch = self._cache.prepare(0, [self._opened[row] for row in pieces])
        logits = self._own(self._pool, batch, np.arange(len(batch.ids), dtype=np.int32))
        self._cache.complete(batch)
        for row, own in zip(pieces, logits.split([len(p) for p in pieces.values()]), strict=True):
            self.logits[row] += list(own)


def whole(model: Any, own: HostDecoderPass, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits of every token, each sequence in one pass of its own."""
    rows = Rows(model, own, len(prompts))
    for row, prompt in enumerate(prompts):
        rows.go_on({row: prompt})
    return [torch.stack(rows.logits[row]) for row in range(len(prompts))]


def prompts_of(lengths: Sequence[int], vocabulary: int = 96) -> list[list[int]]:
    generator = np.random.default_rng(1)
    return [generator.integers(1, vocabulary, size=length).tolist() for length in lengths]


@pytest.mark.parametrize("name", FAMILIES)
def test_against_the_model_in_float64(name: str) -> None:
    config_class, options = FAMILIES[name]
    model = tiny(config_class, **options)
    exact = copy.deepcopy(model).double()
    (prompt,) = prompts_of([40])
    with torch.inference_mode():
        want = exact(torch.tensor([prompt])).logits[0]
        plain = model(torch.tensor([prompt])).logits[0]
    (got,) = whole(model, found(model), [prompt])
    error = (got - want).abs().max()
    assert error <= 1e-5 * want.std()
    assert error <= 4 * (plain - want).abs().max()  # no worse than torch, but for luck


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_another_decoder_is_left_alone(name: str) -> None:
    config_class, options = OTHERS[name]
    assert find_host_pass(tiny(config_class, **options)) is None


def test_a_model_of_other_code_is_left_alone() -> None:
    class Own(LlamaForCausalLM):
        """Somebody's own, under the name of a family."""

    model = tiny(LlamaConfig)
    model.__class__ = Own
    assert find_host_pass(model) is None
    assert find_host_pass(tiny(LlamaConfig).bfloat16()) is None
    assert find_host_pass(tiny(LlamaConfig).train()) is None
    assert find_host_pass(tiny(LlamaConfig).double()) is None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_token_has_the_same_bits_however_it_is_computed(seed: int) -> None:
    """Whatever is beside it in its pass, and however its sequence is cut in passes."""
    model, cuts = tiny(Qwen3Config), np.random.default_rng(seed)
    own = found(model)
    prompts = prompts_of([1, 13, 30, 5])
    want = whole(model, own, prompts)
    rows, done = Rows(model, own, len(prompts)), [0] * len(prompts)
    while any(at < len(prompt) for at, prompt in zip(done, prompts, strict=True)):
        pieces: dict[int, Sequence[int]] = {}
        for row, prompt in enumerate(prompts):
            count = min(len(prompt) - done[row], int(cuts.integers(0, 10)))
            if count:
                pieces[row] = prompt[done[row] : done[row] + count]
                done[row] += count
        if pieces:
            rows.go_on(pieces)
    for row, logits in enumerate(want):
        assert torch.equal(torch.stack(rows.logits[row]), logits)


def routed(**options: Any) -> RoutedModel:
    pair = trained_pair()
    config = RouterConfig(threshold=pair.threshold, max_think_tokens=120, max_answer_tokens=16)
    return RoutedModel(pair.small, pair.large, pair.tokenizer, config, **options)


def said(result: Any) -> tuple[list[int], list[tuple[str, float | None, str]]]:
    steps = [(step.model, step.entropy, step.text) for step in result.trace.steps]
    return result.token_ids, steps


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_change_no_bit(temperature: float) -> None:
    """Not only the same tokens: the entropy of each step, to the last bit."""
    prompts, seeds = trained_pair().prompts, list(range(5))
    plain, drafted = (
        [said(r) for r in routed(drafts=drafts).generate(prompts, seeds, temperature=temperature)]
        for drafts in (0, "auto")
    )
    assert drafted == plain


def test_a_prompt_among_others_has_the_bits_that_it_has_alone() -> None:
    prompts = trained_pair().prompts
    model = routed(max_sequences=5)
    together = [said(result) for result in model.generate(prompts, temperature=0.0)]
    alone = [said(model.generate([prompt], temperature=0.0)[0]) for prompt in prompts]
    assert together == alone


def _hooked(model: Any) -> Callable[[], None]:
    return model.model.layers[1].mlp.register_forward_hook(lambda *_: None).remove  # type: ignore[no-any-return]


def _globally_hooked(model: Any) -> Callable[[], None]:
    return torch.nn.modules.module.register_module_forward_hook(lambda *_: None).remove


def _replaced(model: Any) -> Callable[[], None]:
    mlp = model.model.layers[0].mlp
    before, mlp.up_proj = mlp.up_proj, torch.nn.Linear(64, 96, bias=False)

    def undo() -> None:
        mlp.up_proj = before

    return undo


def _other_weights(model: Any) -> Callable[[], None]:
    weight = model.model.layers[0].self_attn.o_proj.weight
    before, weight.data = weight.data, weight.data.clone()

    def undo() -> None:
        weight.data = before

    return undo


def _own_forward(model: Any) -> Callable[[], None]:
    norm = model.model.norm
    norm.forward = lambda hidden: hidden

    def undo() -> None:
        del norm.forward

    return undo


def _patched_class(model: Any) -> Callable[[], None]:
    before = LlamaAttention.forward
    LlamaAttention.forward = lambda *a, **o: before(*a, **o)  # type: ignore[method-assign]

    def undo() -> None:
        LlamaAttention.forward = before  # type: ignore[method-assign]

    return undo


def _training(model: Any) -> Callable[[], None]:
    model.train()
    return lambda: model.eval() and None


def _autocast(model: Any) -> Callable[[], None]:
    context = torch.autocast("cpu", torch.bfloat16)
    context.__enter__()
    return lambda: context.__exit__(None, None, None)


CHANGES = [
    _hooked,
    _globally_hooked,
    _replaced,
    _other_weights,
    _own_forward,
    _patched_class,
    _training,
    _autocast,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_watched_or_changed_runs_its_own_code(
    change: Callable[[Any], Callable[[], None]],
) -> None:
    model = tiny(LlamaConfig)
    own = found(model)
    undo = change(model)
    try:
        assert not own.takes()
    finally:
        undo()
    assert own.takes()


def test_weights_that_change_in_place_are_what_counts() -> None:
    model = tiny(LlamaConfig)
    own, prompts = found(model), prompts_of([9])
    before = whole(model, own, prompts)[0]
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    assert own.takes()
    with torch.inference_mode():
        want = model(torch.tensor(prompts)).logits[0]
    got = whole(model, own, prompts)[0]
    assert (got - want).abs().max() <= 1e-4 * want.std()
    assert (got - before).abs().max() > 1e-2 * want.std()


def test_large_models_wait_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's products run on its threads, those of the native pass on the library's."""
    own = found(tiny(LlamaConfig))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert own.takes()
    monkeypatch.setattr(host_pass, "_SMALL_BYTES", 1)
    assert find_host_pass(tiny(LlamaConfig)) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    large = found(tiny(LlamaConfig))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert not large.takes()
    monkeypatch.setattr(host_pass._C, "get_num_threads", lambda: 4)
    assert large.takes()


def test_a_pair_has_it_unless_told_otherwise() -> None:
    pair = trained_pair()
    models, places = {"small": pair.small, "large": pair.large}, {"small": "cpu", "large": "cpu"}
    fused = choose_engine("auto", models, places).fused
    assert [name for name, each in fused.items() if each.whole is not None] == ["small", "large"]
    assert not choose_engine("auto", models, places, fuse=False).fused


def _batch_of(cache: KvCache, ids: list[int]) -> RaggedBatch:
    return cache.prepare(0, [cache.open([ids])])


def test_bad_input_is_refused_before_anything_is_written() -> None:
    model = tiny(LlamaConfig)
    own, layout = found(model), kv_layout(model)
    pool = PagePool([layout], 6 * layout.page_bytes, layout.page_bytes)
    cache = KvCache(pool, 4)
    with pytest.raises(ValueError, match="token 96 lies outside the embedding of 96 tokens"):
        own(pool, _batch_of(cache, [3, 96]))
    batch = _batch_of(cache, [3, 4, 5])
    with pytest.raises(ValueError, match="row 3 lies outside the batch of 3 tokens"):
        own(pool, batch, np.array([3], np.int32))
    native, cosine = own._native, torch.zeros(2, 16)
    out = torch.empty(1, 96)
    with pytest.raises(ValueError, match="position 2 lies outside the tables of 2"):
        native.run(pool, batch, cosine, cosine, [2], out)
    with pytest.raises(ValueError, match=r"cosine and sine must have the shape \[positions, 16\]"):
        native.run(pool, batch, torch.zeros(9, 8), torch.zeros(9, 8), [2], out)
    with pytest.raises(ValueError, match=r"logits must be \[1, 96\]"):
        native.run(pool, batch, cosine, cosine, [2], torch.empty(2, 96))
    with pytest.raises(TypeError, match="logits must be float32"):
        native.run(pool, batch, cosine, cosine, [2], out.double())
    other = tiny(LlamaConfig, num_key_value_heads=4)
    layout = kv_layout(other)
    strange = PagePool([layout], 4 * layout.page_bytes, layout.page_bytes)
    with pytest.raises(ValueError, match="the pool's pages have other layers"):
        own(strange, _batch_of(KvCache(strange, 1), [3]))
