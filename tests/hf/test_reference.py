"""Routed runs against a loop without any cache, and batches against single sequences.

The loop computes the whole text again for every token, takes the entropy in float64, and knows the
rules from their description alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch

import hf_pairs
from hf_pairs import FAMILIES, Pair

pytestmark = pytest.mark.both_engines

MARGIN = 1e-4  # nats, or between the two largest logits; below, rounding may choose
ENTROPY_ERROR = 1e-4
THINK, ANSWER, CAP = 60, 8, 12  # tokens
WHITE_SPACE = " \t\n\v\f\r"


@dataclass
class Slow:
    """What the loop wrote; `uncertain` counts the choices within the margin."""

    tokens: list[int] = field(default_factory=list)
    steps: list[tuple[str, float | None, int]] = field(default_factory=list)  # H, number of tokens
    first_uncertain: int = 10**9  # index of the first token that rounding may change
    uncertain: int = 0
    steps_before: int = 0  # steps that were complete by then

    def note(self, distance: float) -> None:
        """A choice that was this far from another one."""
        if distance < MARGIN:
            if not self.uncertain:
                self.first_uncertain, self.steps_before = len(self.tokens), len(self.steps)
            self.uncertain += 1


@torch.inference_mode()
def last_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """In float64, the ids of the vocabulary only."""
    logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits[: hf_pairs.VOCABULARY].double()


def choose(slow: Slow, logits: torch.Tensor) -> int:
    first, second = logits.topk(2).values.tolist()
    slow.note(first - second)
    return int(logits.argmax())


@cache
def slow_runs(family: str, attention: str) -> list[Slow]:
    """Of all prompts: the engines are compared with the same."""
    pair = hf_pairs.random_pair(family, attention=attention)
    return [slow_run(pair, prompt, pair.threshold) for prompt in pair.prompts]


def slow_run(pair: Pair, prompt: list[int], threshold: float) -> Slow:
    """Greedy; </think> and end of sequence are not expected: the thinking ends by its budget."""
    slow, writer, entropy, text, step = Slow(), "", None, "", []
    while len(slow.tokens) < THINK:
        logits = last_logits(pair.model(writer or "small"), prompt + slow.tokens)
        written = pair.tokenizer.decode([token := choose(slow, logits)])
        if not writer and written.strip(WHITE_SPACE):  # the first token of a step: the glimpse
            log_p = logits.log_softmax(0)
            entropy = float(-(log_p.exp() * log_p).sum())
            slow.note(abs(entropy - threshold))
            writer = "large" if entropy > threshold else "small"
            if writer == "large":
                continue
        slow.tokens.append(token)
        step.append(token)
        ends = False
        before = pair.tokenizer.decode(step[:-1])
        for index, character in enumerate(written, start=1):
            text += character
            content = (before + written[:index]).strip(WHITE_SPACE)
            ends |= text.endswith("\n\n") and bool(content)
        if ends or len(step) == CAP or len(slow.tokens) == THINK:
            slow.steps.append((writer or "small", entropy, len(step)))
            writer, entropy, step = "", None, []
    slow.tokens += pair.tokenizer.encode("\n</think>\n\n", add_special_tokens=False)
    for _ in range(ANSWER):
        slow.tokens.append(choose(slow, last_logits(pair.large, prompt + slow.tokens)))
    return slow


def check(result: Any, slow: Slow) -> None:
    """Compares up to the first choice that rounding may change."""
    end = slow.first_uncertain
    assert result.token_ids[:end] == slow.tokens[:end]
    steps = [(step.model, step.entropy, step.num_tokens) for step in result.trace.steps]
    if not slow.uncertain:
        assert len(steps) == len(slow.steps)
        assert len(result.token_ids) == len(slow.tokens)
    complete = slow.steps_before if slow.uncertain else len(steps)
    for got, want in zip(steps[:complete], slow.steps, strict=False):
        assert (got[0], got[2]) == (want[0], want[2])
        assert (got[1] is None) == (want[1] is None)
        if got[1] is not None and want[1] is not None:
            assert abs(got[1] - want[1]) <= ENTROPY_ERROR


PAIRS = [*((family, "sdpa") for family in FAMILIES), ("gemma3", "eager")]


@pytest.mark.parametrize(("family", "attention"), PAIRS)
def test_ragged_batch_and_single_runs_against_the_loop(family: str, attention: str) -> None:
    pair = hf_pairs.random_pair(family, attention=attention)
    routed = pair.routed(max_think_tokens=THINK, max_answer_tokens=ANSWER, max_step_tokens=CAP)
    batch = routed.generate(pair.prompts)
    uncertain, models = 0, []
    for prompt, together, slow in zip(
        pair.prompts, batch, slow_runs(family, attention), strict=True
    ):
        check(together, slow)
        check(routed.generate([prompt])[0], slow)
        uncertain += slow.uncertain
        models += [step[0] for step in slow.steps]
    share = models.count("large") / len(models)
    print(f"{family} {attention}: {len(models)} steps, {share:.0%} large, {uncertain} uncertain")
    assert 0.1 < share < 0.9, "both models must write"
    assert uncertain < 3, "too little would be compared"


def test_a_wrong_route_is_noticed() -> None:
    """The loop at another threshold writes something else: the comparison can fail."""
    pair = hf_pairs.random_pair("qwen3")
    routed = pair.routed(max_think_tokens=THINK, max_answer_tokens=ANSWER)
    result = routed.generate(pair.prompts[:1])[0]
    with pytest.raises(AssertionError):
        check(result, slow_run(pair, pair.prompts[0], pair.threshold / 2))


def test_trained_pair_in_a_batch_and_alone() -> None:
    """Sequences that end at different times, thinking that ends by itself."""
    pair = hf_pairs.trained_pair()
    routed = pair.routed(max_think_tokens=400, max_answer_tokens=60, max_step_tokens=512)
    batch = routed.generate(pair.prompts)
    for prompt, together in zip(pair.prompts, batch, strict=True):
        alone = routed.generate([prompt])[0]
        assert together.token_ids == alone.token_ids
        assert [s.model for s in together.trace.steps] == [s.model for s in alone.trace.steps]
    assert len({len(result.token_ids) for result in batch}) > 1
