"""Budgets: what was set is kept or refused, the rest follows the contexts; the trace says so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import glimprouter as gr
import hf_pairs
from glimprouter.hf.pair.budgets import Budgets, budgets_of
from glimprouter.hf.pair.prompts import EncodedPrompt, encode_prompt

SIZES = st.integers(1, 20_000)


@given(
    st.tuples(SIZES, SIZES),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.none() | st.integers(1, 12_000),
    st.none() | st.integers(0, 12_000),
    st.integers(0, 4),
)
def test_no_budget_reaches_beyond_a_context(
    contexts: tuple[int, int],
    lengths: tuple[int, int],
    think: int | None,
    answer: int | None,
    closing: int,
) -> None:
    config = gr.RouterConfig(max_think_tokens=think, max_answer_tokens=answer)
    prompt = EncodedPrompt(None, [0] * lengths[0], [0] * lengths[1])
    named = {"small": contexts[0], "large": contexts[1]}
    wanted_answer = min(2048, min(contexts) // 4) if answer is None else answer
    room = min(c - n for c, n in zip(contexts, lengths, strict=True)) - wanted_answer - closing
    if room < 1 or (think is not None and think > room):
        with pytest.raises(ValueError, match=r"shorten the prompt|leave it unset"):
            budgets_of(3, prompt, config, named, closing)
        return
    derived = [name for name, value in (("answer", answer), ("think", think)) if value is None]
    assert budgets_of(3, prompt, config, named, closing) == Budgets(
        min(8192, room) if think is None else think, wanted_answer, tuple(derived)
    )


def test_the_published_budgets_where_the_contexts_are_long() -> None:
    prompt = EncodedPrompt(None, [0] * 100, [0] * 90)
    found = budgets_of(0, prompt, gr.RouterConfig(), {"small": 40_960, "large": 131_072}, 3)
    assert found == Budgets(8192, 2048, ("answer", "think"))


def test_the_trace_says_what_was_in_force() -> None:
    pair = hf_pairs.random_pair("qwen3")
    routed = pair.routed(max_think_tokens=None, max_answer_tokens=None, threshold=0.5)
    context = pair.small.config.max_position_embeddings
    trace = routed.generate([pair.prompts[0]])[0].trace
    length = len(encode_prompt(pair.prompts[0], pair.tokenizer, pair.tokenizer).small)
    closing = len(routed.boundary.close_ids)
    assert trace.answer_limit == min(2048, context // 4)
    assert trace.think_limit == min(8192, context - length - trace.answer_limit - closing)
    assert trace.derived_limits == ["answer", "think"]
    set_trace = pair.routed(max_think_tokens=9).generate([pair.prompts[0]])[0].trace
    assert (set_trace.think_limit, set_trace.answer_limit) == (9, 8)
    assert set_trace.derived_limits == []


def test_a_router_alone_has_the_published_budgets() -> None:
    pair = hf_pairs.random_pair("qwen3")
    boundary = pair.routed().boundary
    config = gr.RouterConfig(temperature=0.0)
    set_config = config.replace(max_think_tokens=8192, max_answer_tokens=2048)
    routers = [gr.StepRouter(boundary, c) for c in (config, set_config)]
    states = [router.state(router.open()) for router in routers]
    assert states[0] == states[1]
