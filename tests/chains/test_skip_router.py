"""A router of tokens around blocks, trained on what the blocks did."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config

from glimprouter.chains import (
    BlockRecord,
    BlockSkipping,
    SkipRouter,
    TokenFeatures,
    record_blocks,
)
from tiny_models import assert_untouched, tiny

LAYERS = 4


@cache
def model() -> Any:
    return tiny(Qwen3Config, num_hidden_layers=LAYERS, attn_implementation="eager")


def texts(count: int = 6, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 96, (20 + n,), generator=generator).tolist() for n in range(count)]


@cache
def record() -> BlockRecord:
    return record_blocks(model(), texts())


def test_similarities_are_those_of_the_hidden_states() -> None:
    want: list[float] = []
    blocks: list[int] = []
    for ids in texts():
        with torch.inference_mode():
            states = list(model()(torch.tensor([ids]), output_hidden_states=True).hidden_states)
            # The last of them is behind the norm: what comes before it is computed anew.
            seen: list[torch.Tensor] = []
            hook = model().model.norm.register_forward_pre_hook(lambda _, a, s=seen: s.append(a[0]))
            model()(torch.tensor([ids]))
            hook.remove()
        states[-1] = seen[0]
        for block in range(LAYERS):
            x, y = states[block][0].double(), states[block + 1][0].double()
            want += ((x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).tolist()
            blocks += [block] * len(ids)
    np.testing.assert_allclose(record().similarity, want, atol=1e-9)
    assert record().block.tolist() == blocks
    assert record().features.shape == (len(want), 3)
    assert_untouched(model())


def test_shares_order_and_examples() -> None:
    found, bound = record(), 0.8
    parts = [found.similarity[found.block == b] for b in range(LAYERS)]
    shares = [float((part >= bound).mean()) for part in parts]
    assert found.shares(bound) == shares
    means = [part.mean() for part in parts]
    assert found.order() == sorted(range(LAYERS), key=lambda b: -means[b])
    features, labels = found.examples(bound)
    assert features.shape == (len(labels), 4)
    assert labels == (found.similarity >= bound).tolist()
    for row, block in zip(features, found.block, strict=True):
        assert row[3] == shares[block]
    np.testing.assert_array_equal(features[:, :3], found.features)


def test_it_learns_which_tokens_may_skip() -> None:
    bound = float(np.median(record().similarity))
    router = SkipRouter(*record().examples(bound))
    others = record_blocks(model(), texts(seed=5))
    shares = record().shares(bound)
    right, base = [], []
    for block in range(LAYERS):
        rows = others.features[others.block == block]
        features = TokenFeatures(
            block, rows[:, 0].astype(np.int64), rows[:, 1], rows[:, 2], shares[block], None
        )
        chances = router.chances(features)
        assert ((chances >= 0) & (chances <= 1)).all()
        labels = others.similarity[others.block == block] >= bound
        right += ((chances > 0.5) == labels).tolist()
        base += labels.tolist()
    # Labels are even: a coin is right half of the time.
    assert abs(np.mean(base) - 0.5) < 0.1
    assert np.mean(right) > 0.65
    with BlockSkipping(model(), router, shares=shares) as skipping, torch.inference_mode():
        for ids in texts(seed=5):
            model()(torch.tensor([ids]))
    assert 0 < skipping.counts.share < 1


def test_a_higher_threshold_skips_fewer() -> None:
    router = SkipRouter(*record().examples(float(np.median(record().similarity))))
    shares = []
    for threshold in (0.0, 0.5, 0.8, 1.0):
        skipping = BlockSkipping(model(), router, shares=0.5, threshold=threshold)
        with skipping, torch.inference_mode():
            model()(torch.tensor(texts()[:1]))
        shares.append(skipping.counts.share)
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (1.0, 0.0)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"features must be \[n, 4\], got \[5, 3\]"):
        SkipRouter(np.zeros((5, 3)), [True] * 5)
    with pytest.raises(ValueError, match=r"features must be \[n, d\] for 4 tokens"):
        SkipRouter(np.zeros((5, 4)), [True] * 4)
    with pytest.raises(ValueError, match="all tokens are of one kind"):
        SkipRouter(np.zeros((5, 4)), [True] * 5)
    with pytest.raises(ValueError, match="none of them empty"):
        record_blocks(model(), [[1], []])
    sdpa = tiny(Qwen3Config, attn_implementation="sdpa")
    with pytest.raises(ValueError, match="this rule needs 'eager'"):
        record_blocks(sdpa, texts())
    assert_untouched(model())
