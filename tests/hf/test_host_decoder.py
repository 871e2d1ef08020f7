"""A decoder's layers in one native call: what they compute, and in which bits."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from decoder_rows import Rows, found, prompts_of, whole
from glimprouter import RouterConfig, demo_pair
from glimprouter.hf import RoutedModel
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.attention.paged import paged_forward
from glimprouter.kv import KvCache, PagePool, RaggedBatch
from hf_pairs import trained_pair
from tiny_models import tiny

FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama, tied": (LlamaConfig, {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
    "yarn": (
        Qwen3Config,
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    ),
}


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


def test_long_sequences() -> None:
    """Beyond what the tables of angles begin with."""
    model = tiny(LlamaConfig, max_position_embeddings=1024)
    (prompt,) = prompts_of([700])
    rows = Rows(model, found(model), 1)
    for piece in (prompt[:500], prompt[500:]):
        rows.go_on({0: piece})
    with torch.inference_mode():
        want = model(torch.tensor([prompt])).logits[0]
    assert (torch.stack(rows.logits[0]) - want).abs().max() <= 1e-4 * want.std()


def test_pages_of_another_type() -> None:
    model = tiny(LlamaConfig)
    (prompt,) = prompts_of([30])
    told = []
    for own in (found(model), functools.partial(paged_forward, model)):
        rows = Rows(model, lambda p, b, r, own=own: own(p, b, rows=r), 1, "bfloat16")
        rows.go_on({0: prompt[:20]})
        rows.go_on({0: prompt[20:]})
        told.append(torch.stack(rows.logits[0]))
    native, plain = told
    assert (native - plain).abs().max() <= 0.03 * plain.std()
    assert (native - whole(model, found(model), [prompt])[0]).abs().max() > 1e-4 * plain.std()


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


@functools.cache
def models() -> tuple[Any, Any]:
    """The embedded pair, as nobody else has it: others' hooks stay on models, and are heard."""
    small, large = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        for path in (demo_pair.small_path(), demo_pair.large_path())
    )
    return small.eval(), large.eval()


def routed(**options: Any) -> RoutedModel:
    pair = trained_pair()
    config = RouterConfig(threshold=pair.threshold, max_think_tokens=120, max_answer_tokens=16)
    return RoutedModel(*models(), pair.tokenizer, config, **options)


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


def _batch_of(cache: KvCache, ids: list[int]) -> RaggedBatch:
    return cache.prepare(0, [cache.open([ids])])


def test_bad_input_is_refused_before_anything_is_written() -> None:
    model = tiny(LlamaConfig)
    own, layout = found(model), kv_layout(model)
    pool = PagePool([layout], 6 * layout.page_bytes, layout.page_bytes)
    cache = KvCache(pool, 4)
    before = pool.memory.copy()
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
    assert np.array_equal(pool.memory, before)
