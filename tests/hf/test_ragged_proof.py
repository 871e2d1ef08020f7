"""The engine on pages against the gathering one: the same tokens, routes and steps.

Eight ragged prompts in one batch, with drafts, and each alone on pages, against single runs of the
gathering engine. A difference is only allowed where a choice of that engine was so close that
rounding may turn it: the two largest logits, or the entropy and the threshold.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

import hf_pairs
from glimprouter.demo_pair import task
from glimprouter.hf.attention import layers
from hf_pairs import ENGINE, Pair
from hf_watch import TRIAL, Rows
from shared_trials import changed

MARGIN = 1e-4  # nats, or between the two largest logits
ENTROPY_ERROR = 1e-4
THINK, ANSWER, CAP = 100, 10, 12  # tokens
LENGTHS = (23, 5, 41, 12, 2, 67, 31, 17)
PAIRS = {"qwen3": "sdpa", "llama": "sdpa", "gemma2": "eager", "gemma3": "sdpa"}


class Choice(NamedTuple):
    """A token with who wrote it, and in which step; step -1 for what belongs to none."""

    token: int
    model: str
    step: int


@dataclasses.dataclass
class Comparison:
    """Of several runs against the oracle's."""

    tokens: int = 0  # of the oracle's
    same: int = 0  # of them, up to the first difference
    close: int = 0  # differences at close choices


def choices(result: Any) -> list[Choice]:
    """The whole sequence, token by token."""
    steps = [
        (step.model, index)
        for index, step in enumerate(result.trace.steps)
        for _ in range(step.num_tokens)
    ]
    rest = [("", -1)] * (len(result.token_ids) - len(steps))
    writers = zip(result.token_ids, steps + rest, strict=True)
    return [Choice(token, *writer) for token, writer in writers]


@contextmanager
def margins(pair: Pair, prompt: list[int]) -> Iterator[dict[int, float]]:
    """Of a single run of the oracle: what separates each generated token from the second choice.

    Where both models computed a token's logits, those of the one that came last: it wrote.
    """
    width, found = len(pair.tokenizer), dict[int, float]()

    def record(_module: Any, _args: Any, arguments: dict[str, Any], output: Any) -> None:
        if TRIAL.get():
            return
        rows = Rows.of(arguments)
        first, second = output.logits[0, -1, :width].double().topk(2).values.tolist()
        found[rows.starts[0] + rows.counts[0] - len(prompt)] = first - second

    models = (pair.small, pair.large)
    handles = [model.register_forward_hook(record, with_kwargs=True) for model in models]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def compare(got: Any, oracle: Any, close: dict[int, float], threshold: float) -> Comparison:
    """Raises AssertionError at a difference that no close choice explains."""
    ours, theirs = choices(got), choices(oracle)
    pairs = enumerate(itertools.zip_longest(ours, theirs))
    first = next((i for i, (a, b) in pairs if a != b), None)
    same = len(theirs) if first is None else first
    for index, (mine, step) in enumerate(
        zip(got.trace.steps, oracle.trace.steps, strict=first is None)
    ):
        if first is not None and index >= theirs[first].step >= 0:
            break
        assert (mine.num_tokens, mine.end_reason) == (step.num_tokens, step.end_reason)
        assert (mine.entropy is None) == (step.entropy is None)
        if mine.entropy is not None:
            assert abs(mine.entropy - step.entropy) <= ENTROPY_ERROR
    if first is None:
        return Comparison(len(theirs), same)
    mine, want = ours[first], theirs[first]
    assert mine.step == want.step, f"a step ends elsewhere at token {first}"
    if mine.model != want.model:
        entropy = oracle.trace.steps[want.step].entropy
        assert abs(entropy - threshold) < MARGIN, f"another route at token {first}"
    else:
        margin = close.get(first, float("inf"))
        assert margin < MARGIN, f"another token at {first}, whose margin is {margin:.2g}"
    return Comparison(len(theirs), same, close=1)


def pair_of(name: str) -> Pair:
    """With eight ragged prompts."""
    if name != "trained":
        pair = hf_pairs.random_pair(name, attention=PAIRS[name])
        return dataclasses.replace(pair, prompts=hf_pairs.raw_prompts(LENGTHS))
    pair = hf_pairs.trained_pair()
    prompts = [
        pair.tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.prompt}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for problem in task.held_out_problems(len(LENGTHS), seed=4)
    ]
    return dataclasses.replace(pair, prompts=prompts)


def routed(pair: Pair, engine: str, cap: int, drafts: int = 0) -> Any:
    token = ENGINE.set(engine)
    try:
        return pair.routed(
            max_think_tokens=THINK, max_answer_tokens=ANSWER, max_step_tokens=cap, drafts=drafts
        )
    finally:
        ENGINE.reset(token)


def generate(pair: Pair, prompts: list[list[int]], engine: str, cap: int) -> list[Any]:
    results: list[Any] = routed(pair, engine, cap).generate(prompts)
    return results


@pytest.mark.parametrize("name", [*PAIRS, "trained"])
def test_pages_against_the_oracle(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch on pages as they are, with drafts; the single runs on small ones."""
    pair, total, models = pair_of(name), Comparison(), []
    cap = 512 if name == "trained" else CAP
    batch = routed(pair, "paged", cap, drafts=8).generate(pair.prompts)
    alone, reference = routed(pair, "paged", cap), routed(pair, "gather", cap)
    monkeypatch.setattr(layers, "PAGE_SIZE", 16)
    for prompt, together in zip(pair.prompts, batch, strict=True):
        with margins(pair, prompt) as close:
            oracle = reference.generate([prompt])[0]
        assert min(close) == 0, "the margins begin with the first token"
        for got in (together, alone.generate([prompt])[0]):
            one = compare(got, oracle, close, pair.threshold)
            total.tokens += one.tokens
            total.same += one.same
            total.close += one.close
        models += [step.model for step in oracle.trace.steps]
    share = models.count("large") / len(models)
    print(
        f"{name}: {total.same} of {total.tokens} tokens the same, {total.close} differences at"
        f" choices closer than {MARGIN:g}; {len(models)} steps, {share:.0%} large"
    )
    assert len({len(prompt) for prompt in pair.prompts}) > 2, "the batch must be ragged"
    assert 0.05 < share < 0.95, "both models must write"
    assert total.same > 0.9 * total.tokens, "too little would be compared"


def test_other_softcaps_are_noticed() -> None:
    """The comparison can fail: the same weights with scores that are capped a little higher."""
    pair = pair_of("gemma2")
    prompt = pair.prompts[0]
    with margins(pair, prompt) as close:
        oracle = generate(pair, [prompt], "gather", CAP)[0]
    blocks = [*pair.small.model.layers, *pair.large.model.layers]
    with pytest.MonkeyPatch.context() as patch, changed(pair.small, pair.large):
        for layer in blocks:
            patch.setattr(layer.self_attn, "attn_logit_softcapping", 2.2)
        other = generate(pair, [prompt], "paged", CAP)[0]
    with pytest.raises(AssertionError):
        compare(other, oracle, close, pair.threshold)


def test_a_close_choice_explains_a_difference() -> None:
    """And only there: of the token itself, or of the route of the step that it begins."""
    pair = pair_of("qwen3")
    oracle = generate(pair, pair.prompts[:1], "gather", CAP)[0]
    changed = dataclasses.replace(oracle, token_ids=list(oracle.token_ids))
    changed.token_ids[20] += 1
    assert compare(changed, oracle, {20: 0.0}, 0.0) == Comparison(len(oracle.token_ids), 20, 1)
    for close in ({}, {19: 0.0}, {20: 2 * MARGIN}):
        with pytest.raises(AssertionError, match="another token at 20"):
            compare(changed, oracle, close, 0.0)
