"""Tokens that skip blocks: against models without them, and against layers written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
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
from tiny_models import assert_untouched, tiny

LAYERS = 4
IDS = [5, 9, 11, 60, 61, 7, 33, 48, 90, 12, 71]
SKIPS = np.random.default_rng(4).random((LAYERS, len(IDS))) < 0.4
FAMILIES = (Qwen3Config, LlamaConfig)


@cache
def model_of(config: Any = Qwen3Config, attention: str = "sdpa", **options: Any) -> Any:
    return tiny(config, num_hidden_layers=LAYERS, attn_implementation=attention, **options)


class Says(BlockScorer):
    """A rule of a test: what a function of block and position says."""

    def __init__(self, skips: Callable[[int, int], bool], attention: bool = False) -> None:
        self.skips = skips
        self.reads_attention = attention
        self.seen: list[TokenFeatures] = []

    def chances(self, features: TokenFeatures) -> npt.NDArray[np.float64]:
        self.seen.append(features)
        return np.array([float(self.skips(features.block, int(p))) for p in features.position])


def some(block: int, position: int) -> bool:
    """Tokens of each block, others in each."""
    return bool(SKIPS[block, position])


@torch.inference_mode()
def logits_of(model: Any, ids: list[int] = IDS, **options: Any) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([ids]), **options).logits[0]
    return logits


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


def normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
    scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight.double() * x * scale


def turned(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of ``[T, heads, size]`` at positions 0 .. T - 1."""
    tokens, _, size = x.shape
    rates = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * rates
    cos, sin = (part.repeat(1, 2)[:, None] for part in (angles.cos(), angles.sin()))
    first, second = x.split(size // 2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


@torch.inference_mode()
def by_hand(model: Any, ids: list[int], skips: Callable[[int, int], bool]) -> torch.Tensor:
    """The logits in float64, a token at a time through each block."""
    config = model.config
    theta = config.rope_parameters["rope_theta"]
    x = model.model.embed_tokens.weight.double()[ids]
    for block, layer in enumerate(model.model.layers):
        part = layer.self_attn
        h = normed(x, layer.input_layernorm)
        q, k, v = (
            (h @ p.weight.double().T).view(len(ids), -1, config.head_dim)
            for p in (part.q_proj, part.k_proj, part.v_proj)
        )
        if hasattr(part, "q_norm"):
            q, k = normed(q, part.q_norm), normed(k, part.k_norm)
        q, k = turned(q, theta), turned(k, theta)
        group = q.shape[1] // k.shape[1]
        rows = []
        for t in range(len(ids)):
            if skips(block, t):
                rows.append(x[t])
                continue
            heads = []
            for head in range(q.shape[1]):
                keys, values = k[: t + 1, head // group], v[: t + 1, head // group]
                weights = torch.softmax(keys @ q[t, head] / config.head_dim**0.5, 0)
                heads.append(weights @ values)
            y = x[t] + part.o_proj.weight.double() @ torch.cat(heads)
            h2 = normed(y, layer.post_attention_layernorm)
            gate, up = (m.weight.double() @ h2 for m in (layer.mlp.gate_proj, layer.mlp.up_proj))
            down = layer.mlp.down_proj.weight.double()
            rows.append(y + down @ (torch.nn.functional.silu(gate) * up))
        x = torch.stack(rows)
    return normed(x, model.model.norm) @ model.lm_head.weight.double().T


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


def test_features_are_those_of_the_plain_attention() -> None:
    model = model_of(attention="eager")
    rule = Says(lambda *_: False, attention=True)
    with BlockSkipping(model, rule, shares=[0.0, 0.25, 0.5, 1.0]):
        logits_of(model)
    with torch.inference_mode():
        weights = model(torch.tensor([IDS]), output_attentions=True).attentions
    tokens = len(IDS)
    first = rule.seen[0]
    assert first.attention is not None
    assert first.rank is not None
    assert not first.attention.any()
    assert not first.rank.any()
    for block, features in enumerate(rule.seen):
        assert (features.block, features.share) == (block, [0.0, 0.25, 0.5, 1.0][block])
        assert features.position.tolist() == list(range(tokens))
        assert features.entropy is None
        assert features.matrix().shape == (tokens, 4)
        if block == 0:
            continue
        before = weights[block - 1][0].double().mean(0)
        want = [float(before[t:, t].mean()) for t in range(tokens)]  # of those that see it
        np.testing.assert_allclose(features.attention, want, rtol=1e-5)
        order = sorted(range(tokens), key=lambda t: -want[t])
        assert features.rank is not None
        assert [round(float(features.rank[t]) * (tokens - 1)) for t in order] == list(range(tokens))


def test_attention_of_tokens_that_went_through() -> None:
    """Who skips a block asks nothing there; a block that all skip leaves the scores of the last."""
    model = model_of(attention="eager")
    weights: list[torch.Tensor] = []
    hook = model.model.layers[1].self_attn.register_forward_hook(
        lambda _, __, output: weights.append(output[1][0].double().mean(0))
    )

    def skips(block: int, position: int) -> bool:
        return block == 2 or (block == 1 and position in (3, 9, 10))

    rule = Says(skips, attention=True)
    with BlockSkipping(model, rule):
        logits_of(model)
    hook.remove()
    through = [t for t in range(len(IDS)) if not skips(1, t)]
    (seen,) = weights
    assert seen.shape == (len(through), len(IDS))
    want = [
        float(np.mean([seen[row, t] for row, q in enumerate(through) if q >= t] or [0.0]))
        for t in range(len(IDS))
    ]
    assert want[-2:] == [0, 0]  # nobody who sees them asked
    for block in (2, 3):
        np.testing.assert_allclose(rule.seen[block].attention, want, rtol=1e-9, atol=1e-15)


def test_the_oldest_skip() -> None:
    rule = OldestSkip()

    def skipped(start: int, tokens: int, share: float) -> list[int]:
        position = np.arange(start, start + tokens)
        chances = rule.chances(TokenFeatures(1, position, None, None, share, None))
        return [int(p) for p in position[chances > 0.5]]

    assert skipped(0, 10, 0.3) == [1, 2, 3]
    assert skipped(0, 10, 0.95) == list(range(1, 10))
    assert skipped(0, 10, 1.0) == list(range(10))
    assert skipped(20, 4, 0.5) == [20, 21]
    assert skipped(20, 1, 0.9) == []
    model = model_of()
    with BlockSkipping(model, rule, shares=0.3) as skipping:
        logits_of(model)
    assert skipping.counts.skipped.tolist() == [3] * LAYERS


def test_the_least_attended_skip() -> None:
    model = model_of(attention="eager")
    with torch.inference_mode():
        weights = model(torch.tensor([IDS]), output_attentions=True).attentions[0][0]
    received = [float(weights[:, t:, t].double().mean()) for t in range(len(IDS))]
    least = sorted(range(len(IDS)), key=lambda t: received[t])[:4]
    with BlockSkipping(model, LeastAttendedSkip(), shares=[0.4, 0.4, 0.0, 0.0]) as skipping:
        got = logits_of(model)
    assert skipping.counts.skipped.tolist() == [0, 4, 0, 0]
    want = by_hand(model, IDS, lambda block, t: block == 1 and t in least)
    torch.testing.assert_close(got.double(), want, atol=2e-4, rtol=1e-4)


def test_sure_tokens_skip_blocks() -> None:
    """The entropy of each pass says which blocks the next one leaves out."""
    model = model_of()
    ids = torch.tensor([IDS])
    following = torch.randint(1, 96, (20, 1, 1), generator=torch.Generator().manual_seed(5))
    rule = EntropySkips([2, 1, 3], low=2.5, high=3.6)
    with BlockSkipping(model, rule) as skipping, torch.inference_mode():
        past, seen = DynamicCache(config=model.config), []
        expected, numbers = np.zeros(LAYERS, dtype=int), set()
        for tokens in (ids, *following):
            before = skipping.counts.skipped
            logits = model(tokens, past_key_values=past).logits[0, -1].double()
            skipped = np.nonzero(skipping.counts.skipped - before)[0].tolist()
            want: list[int] = []
            if seen:
                ease = min(1.0, max(0.0, (3.6 - seen[-1]) / 1.1))
                want = [2, 1, 3][: int(ease * 3)]
            assert skipped == sorted(want)
            numbers.add(len(want))
            expected[want] += 1
            p = torch.softmax(logits, -1)
            seen.append(float(-(p * p.log()).sum()))
        assert len(numbers) > 2  # the rule had something to say
        assert skipping.counts.skipped.tolist() == expected.tolist()
        model(ids)  # another text: what the last one ended with says nothing about it
        assert skipping.counts.skipped.tolist() == expected.tolist()
    assert_untouched(model)


def test_how_many_blocks_an_entropy_skips() -> None:
    rule = EntropySkips([4, 2], low=1.0, high=2.0)
    cases = {None: 0, 0.0: 2, 1.0: 2, 1.01: 1, 1.5: 1, 1.51: 0, 2.0: 0, 9.0: 0}
    assert {entropy: len(rule.skipped(entropy)) for entropy in cases} == cases
    assert rule.skipped(1.5) == [4]


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
