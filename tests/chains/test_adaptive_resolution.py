"""One model in two precisions: against caches put together by hand, and against each alone."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
)

from glimprouter import RouterConfig, chains
from glimprouter.chains import AdaptiveResolution, reduced_copy, resolution_margins
from glimprouter.hf import RoutedModel
from glimprouter.policies import Margin
from hf_pairs import HYBRID, TOKENIZER, pair_of, random_model
from tiny_models import tiny

PROMPT = [5, 9, 11, 60, 61, 7]
NEW = 24
FAMILIES = (Qwen3Config, LlamaConfig)
PRECISIONS = ("bfloat16", "float16", "int8")


@cache
def full_model(config: Any = Qwen3Config) -> Any:
    return tiny(config, num_hidden_layers=3, max_position_embeddings=512)


@cache
def reduced_model(precision: Any = "bfloat16", config: Any = Qwen3Config) -> Any:
    return reduced_copy(full_model(config), precision)


def greedy(model: Any, prompt: list[int] = PROMPT, new: int = NEW, **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, **options
    )
    return list(written[0, len(prompt) :].tolist())


def margin_of(logits: torch.Tensor) -> float:
    """In float64."""
    largest = torch.softmax(logits.double(), -1).topk(2).values
    return float(largest[0] - largest[1])


class ByHand:
    """Keys and values of each token as whoever owns them computed them, cast at each pass."""

    def __init__(self, models: dict[str, Any]) -> None:
        self.models = models
        self.entries: list[list[tuple[torch.Tensor, torch.Tensor]]] = []

    def read(self, name: str, ids: list[int], start: int) -> tuple[torch.Tensor, Any]:
        """The logits behind ``ids`` at ``start``, and their keys and values."""
        model = self.models[name]
        layers = []
        for layer in range(model.config.num_hidden_layers):
            before = self.entries[:start]
            if before:
                parts = [torch.cat([e[layer][p] for e in before], -2) for p in (0, 1)]
                layers.append(tuple(parts))
        past = DynamicCache(config=model.config)
        for layer, (keys, values) in enumerate(layers):
            past.update(keys.to(model.dtype), values.to(model.dtype), layer)
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), past_key_values=past, logits_to_keep=1).logits
        entries = [
            [
                (layer.keys[..., place : place + 1, :], layer.values[..., place : place + 1, :])
                for layer in past.layers
            ]
            for place in range(start, start + len(ids))
        ]
        return logits[0, -1].float(), entries

    def own(self, entries: Any, start: int) -> None:
        # What came to the reduced model is what it holds, rounded.
        kept = [[(k.clone(), v.clone()) for k, v in entry] for entry in entries]
        self.entries = self.entries[:start] + kept


def written_by_hand(
    reduced: Any, full: Any, threshold: float, reader: str
) -> tuple[list[int], list[bool], list[float]]:
    """The loop, with all caches made anew before each pass."""
    hand = ByHand({"reduced": reduced, "full": full})
    tokens: list[int] = []
    by_full: list[bool] = []
    margins: list[float] = []
    pending, start = list(PROMPT), 0
    if reader == "full":
        logits, entries = hand.read("full", PROMPT, 0)
        hand.own(entries, 0)
        tokens, by_full, margins = [int(logits.argmax())], [True], [math.nan]
        pending, start = tokens[-1:], len(PROMPT)
    while len(tokens) < NEW:
        logits, entries = hand.read("reduced", pending, start)
        hand.own(entries, start)
        margins.append(margin_of(logits))
        by_full.append(margins[-1] <= threshold)
        if by_full[-1]:
            last = start + len(pending) - 1
            logits, entries = hand.read("full", pending[-1:], last)
            hand.own(entries, last)
        tokens.append(int(logits.argmax()))
        start += len(pending)
        pending = tokens[-1:]
    return tokens, by_full, margins


@pytest.mark.parametrize("reader", ["reduced", "full"])
@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tokens_are_those_of_caches_put_together_by_hand(
    precision: Any, config: Any, reader: Any
) -> None:
    full, reduced = full_model(config), reduced_model(precision, config)
    alone = AdaptiveResolution(reduced, full, 0.0).generate(PROMPT, NEW)
    middle = float(np.median(alone.margins))
    got = AdaptiveResolution(reduced, full, middle, reader=reader).generate(PROMPT, NEW)
    tokens, by_full, margins = written_by_hand(reduced, full, middle, reader)
    assert (got.tokens, got.by_full) == (tokens, by_full)
    np.testing.assert_allclose(got.margins, margins, atol=2e-6)
    assert 2 < sum(by_full) < NEW - 2  # both have decided some
    asked = sum(by_full)
    own = len(PROMPT) if reader == "full" else 0
    read = 0 if reader == "full" else len(PROMPT)
    counts = got.counts
    assert counts.full_tokens == asked - (reader == "full") + own
    assert counts.full_passes == asked
    assert counts.reduced_passes == NEW - (reader == "full")
    assert counts.reduced_tokens == read + NEW - 1
    # A token goes over at most once each way: the full model never computes what was computed.
    last = max(n for n, decided in enumerate(by_full) if decided)
    there = len(PROMPT) + last - 1  # of the tokens before the one it computed last
    assert counts.copied_to_full == there - (counts.full_tokens - 1)
    assert counts.copied_to_reduced == counts.full_tokens


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", FAMILIES)
def test_at_no_threshold_the_tokens_are_the_reduced_models_own(precision: Any, config: Any) -> None:
    reduced = reduced_model(precision, config)
    resolution = AdaptiveResolution(reduced, full_model(config), 0.0)
    untied = 0
    for first in range(5, 15):
        prompt = [first, *PROMPT]
        got = resolution.generate(prompt, NEW)
        assert got.by_full == [margin == 0 for margin in got.margins]  # ties are the full model's
        kept = got.by_full.index(True) if any(got.by_full) else NEW
        assert got.tokens[:kept] == greedy(reduced, prompt)[:kept]
        if kept == NEW:
            untied += 1
            assert got.counts == (NEW, 0, len(prompt) + NEW - 1, 0, 0, 0)
    assert untied >= 2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", FAMILIES)
def test_at_threshold_one_the_tokens_are_the_full_models_own(precision: Any, config: Any) -> None:
    full, reduced = full_model(config), reduced_model(precision, config)
    got = AdaptiveResolution(reduced, full, 1.0, reader="full").generate(PROMPT, NEW)
    assert got.tokens == greedy(full)
    assert all(got.by_full)
    assert got.counts.full_tokens == len(PROMPT) + NEW - 1
    assert got.counts.copied_to_full == 0  # nothing of what it reads is the reduced model's


def test_a_prompt_of_one_token() -> None:
    got = AdaptiveResolution(reduced_model(), full_model(), 1.0).generate([7], 5)
    assert got.tokens == greedy(full_model(), [7], 5)  # nothing was there to be copied
    assert got.counts == (5, 5, 5, 5, 0, 5)


def test_it_ends_behind_an_id_that_ends() -> None:
    resolution = AdaptiveResolution(reduced_model(), full_model(), 0.1)
    whole = resolution.generate(PROMPT, NEW)
    end = whole.tokens[7]
    place = whole.tokens.index(end)
    for eos in (end, {end}, [95, end]):
        if eos == [95, end] and 95 in whole.tokens[:place]:
            continue
        got = resolution.generate(PROMPT, NEW, eos)
        assert got.tokens == whole.tokens[: place + 1]
        assert len(got.margins) == len(got.by_full) == place + 1


def test_same_margins_as_the_policy_that_recomputes() -> None:
    """A pair with ARI's rule as a policy, a token a step: the large model reads what it lacks."""
    full = random_model("qwen3", 3, 7)
    reduced = reduced_copy(full)
    prompt = pair_of("qwen3").prompts[0]
    config = RouterConfig(
        temperature=0.0,
        max_step_tokens=1,
        max_think_tokens=16,
        max_answer_tokens=0,
        repetition_guard=False,
    )
    routed = RoutedModel(reduced, full, TOKENIZER, config, policy=Margin(0.2), drafts=0)
    computed = 0

    def count(_: object, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal computed
        computed += named.get("input_ids", arguments[0] if arguments else None).numel()

    hook = full.register_forward_pre_hook(count, with_kwargs=True)
    recomputed = routed.generate([prompt])[0]
    by_policy, computed = computed, 0
    got = AdaptiveResolution(reduced, full, 0.2).generate(prompt, 16)
    hook.remove()
    assert computed == got.counts.full_tokens == sum(got.by_full)
    writers = [step.model == "large" for step in recomputed.trace.steps]
    # Up to the full model's first token nothing has been copied, so both are the same there.
    first = got.by_full.index(True)
    assert writers[: first + 1] == got.by_full[: first + 1]
    assert recomputed.token_ids[:first] == got.tokens[:first]
    assert 1 < sum(got.by_full) < 16
    # The policy's large model has read the prompt, and all before its last token.
    last = max(n for n, large in enumerate(writers) if large)
    assert by_policy >= len(prompt) + last


def test_margins_and_their_calibration() -> None:
    full, reduced = full_model(), reduced_model("int8")
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(1, 96, (n,), generator=generator).tolist() for n in (90, 1, 60)]
    found = resolution_margins(reduced, full, texts)
    want, same = [], []
    with torch.inference_mode():
        for ids in texts:
            rows = [model(torch.tensor([ids])).logits[0] for model in (reduced, full)]
            want += [margin_of(row) for row in rows[0]]
            same += (rows[0].argmax(-1) == rows[1].argmax(-1)).tolist()
    np.testing.assert_allclose(found.margins, want, atol=2e-6)
    assert found.agree.tolist() == same
    differing = sorted(m for m, agree in zip(found.margins, same, strict=True) if not agree)
    assert len(differing) >= 5
    assert found.threshold() == differing[-1]
    assert found.differing_share(found.threshold()) == 0
    below = np.nextafter(np.float32(found.threshold()), np.float32(0))
    assert found.differing_share(float(below)) == pytest.approx(1 / len(want))
    for share in (0.0, 0.3, 0.5, 0.9):
        threshold = found.threshold(share)
        caught = sum(m <= threshold for m in differing) / len(differing)
        assert caught >= share - 1e-9
        smaller = [m for m in differing if m < threshold]
        assert share == 0 or len(smaller) / len(differing) < share
        assert found.full_share(threshold) == np.mean(found.margins <= threshold)
    assert found.threshold(0.0) == 0.0


def test_calibrated_on_what_it_writes_it_decides_as_the_full_model() -> None:
    """With the largest differing margin of a text, each decision on that text is the full one's."""
    full, reduced = full_model(), reduced_model("int8")
    text = greedy(full, PROMPT, 60)
    margins = resolution_margins(reduced, full, [[*PROMPT, *text]])
    differing = int((~margins.agree).sum())
    assert differing > 0
    threshold = margins.threshold()
    kept = margins.margins > threshold
    assert margins.agree[kept].all()
    assert 0 < margins.full_share(threshold) < 1


def test_prompts_are_not_decided() -> None:
    """From the logits before the first written token to those before the last one."""
    full, reduced = full_model(), reduced_model("int8")
    texts, starts = [[*PROMPT, 3, 4, 5], [9, 8, 7]], [len(PROMPT), 1]
    every = [resolution_margins(reduced, full, [text]).margins for text in texts]
    found = resolution_margins(reduced, full, texts, starts=starts).margins
    want = [each[start - 1 : -1] for each, start in zip(every, starts, strict=True)]
    assert found.tolist() == np.concatenate(want).tolist()
    for wrong in ([len(PROMPT)], [0, 1], [len(PROMPT), 3]):
        with pytest.raises(ValueError, match="start"):
            resolution_margins(reduced, full, texts, starts=wrong)


def test_where_the_models_agree_everywhere_the_threshold_is_zero() -> None:
    margins = resolution_margins(full_model(), full_model(), [PROMPT])
    assert margins.agree.all()
    assert margins.threshold() == 0.0


def test_what_it_refuses() -> None:
    full, reduced = full_model(), reduced_model()
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\], got 1.5"):
        AdaptiveResolution(reduced, full, 1.5)
    with pytest.raises(TypeError, match="threshold must be a number"):
        AdaptiveResolution(reduced, full, "0.5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold must lie in"):
        AdaptiveResolution(reduced, full, math.nan)
    with pytest.raises(ValueError, match="reader must be 'reduced' or 'full', got 'both'"):
        AdaptiveResolution(reduced, full, 0.5, reader="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give them the other way round"):
        AdaptiveResolution(full, reduced, 0.5)
    with pytest.raises(ValueError, match="is a LlamaForCausalLM, the full one a Qwen3ForCausalLM"):
        AdaptiveResolution(full_model(LlamaConfig), full, 0.5)
    with pytest.raises(ValueError, match="num_hidden_layers is 2 in the reduced model and 3 in"):
        AdaptiveResolution(tiny(Qwen3Config, max_position_embeddings=512), full, 0.5)
    other = tiny(Qwen3Config, num_hidden_layers=3, max_position_embeddings=512, vocab_size=100)
    with pytest.raises(ValueError, match="vocab_size is 100 in the reduced model and 96 in"):
        AdaptiveResolution(other, full, 0.5)
    with pytest.raises(ValueError, match="precision must be one of"):
        reduced_copy(full, "int4")  # type: ignore[arg-type]
    resolution = AdaptiveResolution(reduced, full, 0.5)
    with pytest.raises(ValueError, match="at least one id"):
        resolution.generate([], 4)
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 96\), got 96"):
        resolution.generate([1, 96], 4)
    with pytest.raises(ValueError, match="max_new_tokens must lie in"):
        resolution.generate(PROMPT, 0)
    with pytest.raises(ValueError, match="at least one text"):
        resolution_margins(reduced, full, [])
    with pytest.raises(ValueError, match="at least one id"):
        resolution_margins(reduced, full, [[]])
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]"):
        resolution_margins(reduced, full, [PROMPT]).threshold(1.1)


@pytest.mark.parametrize(
    ("config", "options", "reason"),
    [
        (MistralConfig, {"sliding_window": 8}, "has a sliding window"),
        (Gemma3TextConfig, {"sliding_window": 8}, "has a sliding window"),
        (
            Qwen3_5TextConfig,
            {**HYBRID, "layer_types": ["linear_attention", "full_attention"]},
            "keeps a recurrent state",
        ),
    ],
)
def test_caches_that_are_not_keys_and_values_are_refused(
    config: Any, options: dict[str, Any], reason: str
) -> None:
    model = tiny(config, **options)
    with pytest.raises(ValueError, match=f"layer 0 of .* {reason}"):
        AdaptiveResolution(model, model, 0.5)


def test_how_weights_are_stored_makes_no_other_model() -> None:
    quantized = copy.deepcopy(full_model())
    quantized.config.quantization_config = {"quant_method": "of another kind"}
    quantized.config.dtype = torch.bfloat16
    got = AdaptiveResolution(quantized, full_model(), 0.0).generate(PROMPT, 4)
    assert got.tokens == greedy(full_model(), new=4)


def test_a_wish_for_a_quantized_cache_is_refused() -> None:
    model = copy.deepcopy(full_model())
    model.generation_config.cache_implementation = "quantized"
    with pytest.raises(ValueError, match="asks for a cache that is 'quantized'"):
        AdaptiveResolution(model, full_model(), 0.5)


def test_logits_that_are_no_distribution_are_named() -> None:
    broken = copy.deepcopy(full_model())
    with torch.no_grad():
        broken.lm_head.weight[5] = math.nan
    with pytest.raises(RuntimeError, match=r"no distribution \(NAN\)"):
        AdaptiveResolution(broken, full_model(), 0.5).generate(PROMPT, 2)
    with pytest.raises(RuntimeError, match="no distribution"):
        chains.resolution_margins(broken, full_model(), [PROMPT])
