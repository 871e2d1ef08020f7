"""What rules for skipping blocks are told of tokens, and the rules that need no training."""

from __future__ import annotations

import numpy as np
import torch
from transformers import DynamicCache

from glimprouter.chains import (
    BlockSkipping,
    EntropySkips,
    LeastAttendedSkip,
    OldestSkip,
    TokenFeatures,
)
from skipped_blocks import IDS, LAYERS, Says, by_hand, logits_of, model_of
from tiny_models import assert_untouched


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
