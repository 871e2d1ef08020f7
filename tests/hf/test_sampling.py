"""Sampled runs: the draws depend on seed, substream and position, never on the batch."""

from __future__ import annotations

from typing import Any

import pytest

import hf_pairs
from hf_pairs import FAMILIES, Pair

pytestmark = pytest.mark.both_engines

SAMPLED = {"temperature": 0.8, "top_p": 0.95, "max_think_tokens": 50, "max_answer_tokens": 6}


def ids(pair: Pair, prompts: list[list[int]], seeds: Any = 0, **options: Any) -> list[list[int]]:
    routed = pair.routed(**{**SAMPLED, **options})
    return [result.token_ids for result in routed.generate(prompts, seeds)]


@pytest.mark.parametrize("family", FAMILIES)
def test_any_batch_size_draws_the_same(family: str) -> None:
    """One after the other (a slot for one sequence), in twos, and all together."""
    pair = hf_pairs.random_pair(family)
    together = ids(pair, pair.prompts)
    assert ids(pair, pair.prompts, max_sequences=1) == together
    assert ids(pair, pair.prompts, max_sequences=2) == together


def test_a_second_call_draws_the_same() -> None:
    """No state is left in the model object."""
    pair = hf_pairs.random_pair("qwen3")
    routed = pair.routed(**SAMPLED)
    first, second = (routed.generate(pair.prompts, 5) for _ in range(2))
    assert [r.token_ids for r in first] == [r.token_ids for r in second]


def test_streams_differ() -> None:
    """The same prompt several times in one call, with one seed, gives independent texts."""
    pair = hf_pairs.random_pair("qwen3")
    texts = ids(pair, [pair.prompts[0]] * 4)
    assert len(set(map(tuple, texts))) == 4
    assert texts[0] == ids(pair, [pair.prompts[0]])[0], "the first prompt has substream 0 anywhere"


def test_streams_do_not_matter_to_greedy_runs() -> None:
    """So the test above sees the draws, and nothing else that differs between the sequences."""
    pair = hf_pairs.random_pair("qwen3")
    texts = ids(pair, [pair.prompts[0]] * 4, temperature=0.0)
    assert len(set(map(tuple, texts))) == 1


def test_seeds() -> None:
    """One for all or one a prompt; another seed gives another text; None is 0."""
    pair = hf_pairs.random_pair("qwen3")
    prompts = [pair.prompts[0]] * 2
    base = ids(pair, prompts, 1)
    assert ids(pair, prompts, [1, 1]) == base
    other = ids(pair, prompts, [1, 2])
    assert other[0] == base[0]
    assert other[1] != base[1]
    assert ids(pair, prompts, None) == ids(pair, prompts, 0)
    with pytest.raises(ValueError, match="got 3 seeds for 2 prompts"):
        ids(pair, prompts, [1, 2, 3])


def test_seed_and_stream_are_in_the_trace() -> None:
    pair = hf_pairs.random_pair("qwen3")
    results = pair.routed(**SAMPLED).generate(pair.prompts[:3], [4, 5, 6])
    assert [(r.trace.seed, r.trace.substream) for r in results] == [(4, 0), (5, 1), (6, 2)]
