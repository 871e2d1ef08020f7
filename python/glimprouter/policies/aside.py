"""What the large model is asked about a step that the small model has written, and its answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from glimprouter.config import check_integer


@dataclass(frozen=True, slots=True)
class Aside:
    """What the large model reads of a written step before a policy judges it.

    It reads all text up to the step's end, and behind it the question, in one forward pass over
    what it has not read yet. Of a step that stays, keys and values stay, too; those of the question
    never do.

    Attributes:
        question: Put behind the step: text, which the large model's tokenizer encodes on its own
            and without special tokens, or that tokenizer's ids. Empty for none.
        answers: Whose log-probabilities behind the question are wanted: texts, each of which is
            exactly one token there, or ids.
        tokens: Whether the log-probabilities of the step's own tokens are wanted. Not of a pair
            whose tokenizers differ: the large model does not have the same tokens.
    """

    question: str | Sequence[int] = ""
    answers: Sequence[str | int] = ()
    tokens: bool = False

    def __post_init__(self) -> None:
        """Checks what needs no tokenizer.

        Raises:
            TypeError: A question or answers of another type.
            ValueError: Nothing is wanted; a question without answers, or answers without question;
                an answer that is empty, or named twice.
        """
        if not isinstance(self.question, str):
            for token in _listed("question", self.question):
                check_integer("each id of the question", token, 0)
        for answer in _listed("answers", self.answers):
            if not isinstance(answer, str):
                check_integer("each answer that is no text", answer, 0)
            elif not answer:
                raise ValueError("an answer must not be empty: it is one token")
        if not self.answers and not self.tokens:
            raise ValueError("an aside must want answers, or the step's tokens; got neither")
        if bool(self.answers) != (len(self.question) > 0):
            raise ValueError(
                "a question and its answers come together, got"
                f" {len(self.question)} characters or ids and {len(self.answers)} answers"
            )
        if len(set(self.answers)) != len(self.answers):
            raise ValueError(f"answers must differ, got {list(self.answers)!r}")


def _listed(name: str, values: Sequence[str | int]) -> Sequence[str | int]:
    if not isinstance(values, Sequence):
        raise TypeError(f"{name} must be text or a list, got {type(values).__name__}")
    return values


@dataclass(frozen=True, slots=True)
class AsideReading:
    """What the large model said.

    Attributes:
        answers: Log-probability of each answer behind the question, at temperature 1, nats; empty
            without a question.
        logprobs: Of each of the step's tokens, likewise; empty unless they are wanted.
    """

    answers: Sequence[float] = ()
    logprobs: Sequence[float] = ()

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the step's tokens under the large model, nats."""
        return math.fsum(self.logprobs) / len(self.logprobs)
