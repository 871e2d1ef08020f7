"""Drafts between two vocabularies: only where each token is the other's image."""

from __future__ import annotations

from typing import Any

import pytest

import hf_translated
from hf_translated import KINDS, permuted_pair, routed

pytestmark = pytest.mark.both_engines


def assert_drafted(results: list[Any]) -> None:
    """Some drafts were made, and compared with what the large model wrote."""
    assert sum(result.counts["small"].drafted for result in results) > 0
    assert sum(result.counts["small"].compared for result in results) > 0


def without_drafts(results: list[Any]) -> list[Any]:
    """Everything but times, and what drafts count.

    The small model has computed more while it drafted, so it may have to replace more, too.
    """
    return [
        (
            result.token_ids,
            result.text,
            [(step.model, step.text, step.num_tokens) for step in result.trace.steps],
            {name: (own.tokens, own.retokenized) for name, own in result.counts.items()},
            result.counts["large"].excess,
        )
        for result in results
    ]


@pytest.mark.parametrize("which", ["small", "large"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_permuted_ids_draft_as_equal_ones(which: str, temperature: float) -> None:
    pair, make, encoded = permuted_pair("trained", which)
    config = pair.routed(max_think_tokens=100, temperature=temperature).config
    want = make(config).generate(encoded, seeds=4)
    got = make(config, drafts=8).generate(encoded, seeds=4)
    assert without_drafts(got) == without_drafts(want)
    accepted = sum(result.counts["small"].accepted for result in got)
    assert accepted > 0
    if temperature == 0:  # sampled by other ids, a draft is another token
        same = pair.routed(max_think_tokens=100, drafts=8).generate(pair.prompts, seeds=4)
        assert accepted == sum(result.counts["small"].accepted for result in same)


@pytest.mark.parametrize(("small", "large"), KINDS)
@pytest.mark.parametrize("route", ["auto", "large"])
def test_vocabularies_that_overlap(small: str, large: str, route: str) -> None:
    """What is tokenized anew, and where, is what it is without drafts."""
    prompts = hf_translated.prompts(small, large)
    want = routed(small, large, route=route).generate(prompts)
    got = routed(small, large, route=route, drafts=6).generate(prompts)
    assert_drafted(got)
    assert without_drafts(got) == without_drafts(want)


@pytest.mark.parametrize(("context", "think"), [(22, 9), (27, 14), (34, 21)])
@pytest.mark.parametrize("route", ["auto", "large"])
def test_a_context_takes_as_much_text_as_without_drafts(
    context: int, think: int, route: str
) -> None:
    small, large = KINDS[0]
    prompts = hf_translated.prompts(small, large)[1:2]
    without, with_drafts = (
        routed(small, large, context=context, route=route, drafts=drafts, max_think_tokens=think)
        for drafts in (0, 6)
    )
    want, got = without.generate(prompts), with_drafts.generate(prompts)
    assert_drafted(got)
    assert without_drafts(got) == without_drafts(want)
    assert [result.trace.error for result in got] == [result.trace.error for result in want]
