"""Sampled texts of one pair whose logits were rounded otherwise: equal up to a draw at an edge."""

from __future__ import annotations

from typing import Any

import torch

import glimprouter as gr
from glimprouter.hf import Result
from hf_pairs import Pair
from reference.philox import uniform_double
from reference.selection import Filters, InverseCdf

_EDGE = 2e-6  # of probability; logits in float32 agree to about so much


def first_difference(got: Result, want: Result) -> int | None:
    """Place of the first token that is another one; None where all are the same."""
    if got.token_ids == want.token_ids:
        return None
    pairs = zip(got.token_ids, want.token_ids, strict=False)
    return next(place for place, (own, other) in enumerate(pairs) if own != other)


def assert_at_an_edge(
    pair: Pair, prompt: list[int], results: tuple[Result, Result], place: int, options: Any
) -> None:
    """Fails unless the two tokens at a place lie on both sides of the documented draw.

    Args:
        pair: That wrote both, with one vocabulary.
        prompt: Ids.
        results: Same up to ``place``.
        place: Of the first difference.
        options: Fields of the config.
    """
    config = gr.RouterConfig(**options)
    filters = Filters(config.temperature, config.top_p, config.top_k, config.min_p)
    trace = results[0].trace
    ids = torch.tensor([[*prompt, *results[0].token_ids[:place]]])
    either = {result.token_ids[place] for result in results}
    distances = []
    for purpose, model in enumerate((pair.small, pair.large)):
        with torch.inference_mode():
            row = model(ids).logits[0, -1].double().numpy()
        inverse = InverseCdf(row, filters)
        draw = uniform_double(trace.seed, trace.substream, place, purpose)
        token, distance = inverse.draw(draw)
        if token in either:
            distances.append(min(distance, inverse.margin))
    assert distances, f"neither of {either} is what a model draws at place {place}"
    assert min(distances) < _EDGE
