"""Tokens that skip blocks: against models without them, and against layers written by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    StaticCache,
)

from glimprouter.chains import (
    BlockScorer,
    BlockSkipping,
    EntropySkips,
    LeastAttendedSkip,
    OldestSkip,
    TokenFeatures,
)
from hf_pairs import HYBRID
from skipped_blocks import IDS, LAYERS, Says, by_hand, logits_of, model_of, some
from tiny_models import assert_untouched, tiny

FAMILIES = (Qwen3Config, LlamaConfig)


def without_block(model: Any, block: int) -> Any:
    """A copy with the layer taken out, and the others numbered anew."""
    shorter = copy.deepcopy(model)
    del shorter.model.layers[block]
    for index, layer in enumerate(shorter.model.layers):
        layer.self_attn.layer_idx = index
    shorter.config.num_hidden_layers -= 1
    if getattr(shorter.config, "layer_types", None):
        shorter.config.layer_types = shorter.config.layer_types[:-1]
    return shorter


def greedy(model: Any, new: int = 12) -> list[int]:
    ids = torch.tensor([IDS])
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
    )
    return list(written[0].tolist())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config", FAMILIES)
def test_nothing_skipped_is_the_plain_model_to_the_bit(config: Any, attention: str) -> None:
    model = model_of(config, attention)
    want, written = logits_of(model), greedy(model)
    skipping = BlockSkipping(model, Says(lambda *_: False, attention == "eager"))
    with skipping:
        assert torch.equal(logits_of(model), want)
        assert greedy(model) == written
    assert skipping.counts.share == 0
    assert skipping.counts.tokens.tolist() == [len(IDS) + len(IDS) + 11] * LAYERS


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize("block", range(LAYERS))
def test_a_block_that_all_skip_is_a_model_without_it(
    config: Any, attention: str, block: int
) -> None:
    model = model_of(config, attention)
    shorter = without_block(model, block)
    with BlockSkipping(model, Says(lambda b, _: b == block, attention == "eager")) as skipping:
        assert torch.equal(logits_of(model), logits_of(shorter))
        assert torch.equal(logits_of(model, use_cache=False), logits_of(shorter, use_cache=False))
        assert greedy(model) == greedy(shorter)
    assert greedy(model) != greedy(shorter)
    counts = skipping.counts
    assert counts.skipped.tolist() == [counts.tokens[b] if b == block else 0 for b in range(LAYERS)]
    assert counts.share == pytest.approx(1 / LAYERS)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config", FAMILIES)
def test_tokens_that_skip_against_layers_by_hand(
    config: Any, attention: str, use_cache: bool
) -> None:
    model = model_of(config, attention)
    with BlockSkipping(model, Says(some, attention == "eager")) as skipping:
        got = logits_of(model, use_cache=use_cache)
    want = by_hand(model, IDS, some)
    torch.testing.assert_close(got.double(), want, atol=2e-4, rtol=1e-4)
    # As exactly as the plain model is.
    plain = by_hand(model, IDS, lambda *_: False)
    torch.testing.assert_close(logits_of(model).double(), plain, atol=2e-4, rtol=1e-4)
    assert (want - plain).abs().max() > 0.1
    skipped = [sum(some(block, t) for t in range(len(IDS))) for block in range(LAYERS)]
    assert skipping.counts.skipped.tolist() == skipped
    assert 0 < min(skipped) <= max(skipped) < len(IDS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_and_types(dtype: torch.dtype) -> None:
    """Outside of inference mode, and in a type of its own, a token's parts are the same."""
    model = copy.deepcopy(model_of(attention="eager")).to(dtype)
    with BlockSkipping(model, Says(some, attention=True)):
        want = logits_of(model)
        logits = model(torch.tensor([IDS])).logits[0]
    assert logits.dtype == dtype
    assert torch.equal(logits.detach(), want)
    logits.float().logsumexp(-1).sum().backward()
    gradient = model.model.layers[0].mlp.up_proj.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()


def test_what_skips_is_not_computed() -> None:
    """The MLP, the output projection and the attention get the gathered tokens only."""
    model = model_of()
    rows: dict[str, list[int]] = {"mlp": [], "o_proj": []}

    def count(name: str) -> Any:
        return lambda _, arguments: rows[name].append(arguments[0].shape[1])

    hooks = []
    for layer in model.model.layers:
        hooks.append(layer.mlp.register_forward_pre_hook(count("mlp")))
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(count("o_proj")))
    with BlockSkipping(model, Says(some)):
        logits_of(model)
    for hook in hooks:
        hook.remove()
    through = [sum(not some(block, t) for t in range(len(IDS))) for block in range(LAYERS)]
    assert rows == {"mlp": through, "o_proj": through}


@pytest.mark.parametrize("pieces", [[1] * len(IDS), [4, 1, 1, 5], [10, 1]])
@pytest.mark.parametrize("config", FAMILIES)
def test_pieces_with_a_cache_are_one_pass(config: Any, pieces: list[int]) -> None:
    model = model_of(config)
    past = DynamicCache(config=model.config)
    with BlockSkipping(model, Says(some)) as skipping:
        whole = logits_of(model)
        parts, start = [], 0
        for size in pieces:
            parts.append(logits_of(model, IDS[start : start + size], past_key_values=past))
            start += size
    torch.testing.assert_close(torch.cat(parts), whole, atol=2e-4, rtol=1e-4)
    assert [layer.get_seq_length() for layer in past.layers] == [len(IDS)] * LAYERS
    tokens = [2 * sum(some(block, t) for t in range(len(IDS))) for block in range(LAYERS)]
    assert skipping.counts.skipped.tolist() == tokens


@pytest.mark.parametrize("config", [Olmo2Config, Qwen3MoeConfig, MistralConfig])
def test_other_decoders(config: Any) -> None:
    options: dict[str, Any] = {
        MistralConfig: {"sliding_window": None},
        Qwen3MoeConfig: {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
    }.get(config, {})
    model = tiny(config, num_hidden_layers=LAYERS, **options)
    shorter = without_block(model, 2)
    with BlockSkipping(model, Says(lambda b, _: b == 2)):
        assert torch.equal(logits_of(model), logits_of(shorter))
    past = DynamicCache(config=model.config)
    with BlockSkipping(model, Says(some)):
        whole = logits_of(model)
        parts = [logits_of(model, [token], past_key_values=past) for token in IDS]
    torch.testing.assert_close(torch.cat(parts), whole, atol=5e-4, rtol=1e-3)


def test_the_model_is_as_before_even_after_an_error() -> None:
    model = model_of(attention="eager")
    want = logits_of(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    class Fails(BlockScorer):
        reads_attention = reads_entropy = True

        def chances(self, features: TokenFeatures) -> npt.NDArray[np.float64]:
            if features.block == 2:
                raise MemoryError("no room")
            return np.ones(len(features.position))

    hooks = [len(part._forward_hooks) for part in model.modules()]
    skipping = BlockSkipping(model, Fails())
    with pytest.raises(MemoryError, match="no room"), skipping:
        logits_of(model)
    assert_untouched(model)
    assert [len(part._forward_hooks) for part in model.modules()] == hooks
    assert torch.equal(logits_of(model), want)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_forward_of_the_users_comes_back() -> None:
    model = copy.deepcopy(model_of())
    layer = model.model.layers[1]
    calls, own = [], layer.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return own(*arguments, **options)

    layer.forward = forward
    with BlockSkipping(model, Says(lambda b, _: b == 2)):
        logits_of(model)
    assert layer.forward is forward
    assert calls == [1]


def test_twice_at_a_time_is_refused() -> None:
    model = model_of()
    with BlockSkipping(model, OldestSkip(), shares=0.5):
        with (
            pytest.raises(RuntimeError, match="skip blocks of this model already"),
            BlockSkipping(model, OldestSkip()),
        ):
            pass
        with BlockSkipping(model_of(LlamaConfig), OldestSkip()):  # another model may
            pass
    assert_untouched(model)


class Bad(BlockScorer):
    def __init__(self, chances: Any) -> None:
        self.given = chances

    def chances(self, features: TokenFeatures) -> Any:
        return self.given


def test_what_it_refuses() -> None:
    model = model_of()
    with pytest.raises(TypeError, match="scorer must be a BlockScorer, got function"):
        BlockSkipping(model, lambda features: features)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\], got 2"):
        BlockSkipping(model, OldestSkip(), threshold=2)
    with pytest.raises(ValueError, match=r"shares must lie in \[0, 1\], got -0.1"):
        BlockSkipping(model, OldestSkip(), shares=[0.1, 0.2, -0.1, 0.0])
    with pytest.raises(ValueError, match="shares has 2 entries for 4 blocks"):
        BlockSkipping(model, OldestSkip(), shares=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"attends by 'sdpa'; this rule needs 'eager'"):
        BlockSkipping(model, LeastAttendedSkip())
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no list of layers"):
        BlockSkipping(tiny(GPT2Config, n_head=4, n_embd=64, n_layer=2), OldestSkip())
    with pytest.raises(ValueError, match="high must be finite and above low"):
        EntropySkips([1], low=2.0, high=1.0)
    with pytest.raises(ValueError, match="order names a block twice"):
        EntropySkips([1, 1], low=1.0, high=2.0)
    with pytest.raises(ValueError, match="low must be at least 0"):
        EntropySkips([1], low=-1.0, high=2.0)
    with pytest.raises(TypeError, match="order must be an integer"):
        EntropySkips([1.5], low=1.0, high=2.0)  # type: ignore[list-item]
    with BlockSkipping(model, OldestSkip()):
        with pytest.raises(ValueError, match="one sequence at a time, got a batch of 2"):
            model(torch.tensor([IDS, IDS]))
        static = StaticCache(config=model.config, max_cache_len=32)
        with pytest.raises(ValueError, match=r"layer 0 of the cache has a cache of another kind"):
            logits_of(model, past_key_values=static)
    for chances in ([0.0], [[0.0] * len(IDS)], [float("nan")] * len(IDS)):
        with (
            pytest.raises(ValueError, match="Bad must give a chance for each of 11 tokens"),
            BlockSkipping(model, Bad(chances)),
        ):
            logits_of(model)
    with pytest.raises(ValueError, match="the attention was not read"):
        TokenFeatures(0, np.arange(2), None, None, 0.0, None).matrix()


@pytest.mark.parametrize(
    ("config", "options", "reason"),
    [
        (Gemma3TextConfig, {"sliding_window": 8}, "has a sliding window"),
        (
            Qwen3_5TextConfig,
            {**HYBRID, "layer_types": ["linear_attention", "full_attention"]},
            "keeps a recurrent state",
        ),
    ],
)
def test_other_caches_are_refused(config: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        BlockSkipping(tiny(config, **options), OldestSkip())
