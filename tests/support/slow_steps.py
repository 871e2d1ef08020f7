"""Steps written and read without any cache: every token from a forward pass over the whole text.

Greedy, of pairs with one vocabulary; it knows where steps end from the description alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import hf_pairs
from hf_pairs import Pair

THINK, ANSWER, CAP = 60, 8, 12  # tokens
WHITE_SPACE = " \t\n\v\f\r"
MARGIN = 1e-4  # between two choices; below, rounding may decide


@dataclass
class SlowRun:
    """What a loop wrote: tokens, and the writer and score of each step."""

    tokens: list[int] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    closest: float = float("inf")  # of any choice to another one

    def note(self, distance: float) -> None:
        """A choice that was this far from another one."""
        self.closest = min(self.closest, distance)


@torch.inference_mode()
def log_p(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Of every next token, in float64, ``[T, V]``; the ids of the vocabulary only."""
    logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits[:, : hf_pairs.VOCABULARY].double().log_softmax(-1)


def _choose(run: SlowRun, pair: Pair, model: str, ids: Sequence[int]) -> int:
    last = log_p(pair.model(model), ids)[-1]
    first, second = last.topk(2).values.tolist()
    run.note(first - second)
    return int(last.argmax())


def write_step(run: SlowRun, pair: Pair, prompt: Sequence[int], writer: str) -> list[int]:
    """The next step behind ``run.tokens``; white space in front is the small model's."""
    step: list[int] = []
    while True:
        ids = [*prompt, *run.tokens, *step]
        blank = not pair.tokenizer.decode(step).strip(WHITE_SPACE)
        token = _choose(run, pair, "small" if blank else writer, ids)
        if blank and pair.tokenizer.decode([token]).strip(WHITE_SPACE):
            token = _choose(run, pair, writer, ids)
        before, written = pair.tokenizer.decode(step), pair.tokenizer.decode([token])
        step.append(token)
        ends = any(
            (before + written[:k]).endswith("\n\n") and (before + written[:k]).strip(WHITE_SPACE)
            for k in range(1, len(written) + 1)
        )
        if ends or len(step) == CAP or len(run.tokens) + len(step) == THINK:
            return step


def write_answer(run: SlowRun, pair: Pair, prompt: Sequence[int]) -> None:
    """Closes the thinking; the large model answers."""
    run.tokens += pair.tokenizer.encode("\n</think>\n\n", add_special_tokens=False)
    for _ in range(ANSWER):
        run.tokens.append(_choose(run, pair, "large", [*prompt, *run.tokens]))
