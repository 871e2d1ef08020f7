"""SpecReason: the large model reads the small model's step and grades it with one digit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from glimprouter.config import ModelName
from glimprouter.policies.aside import Aside, AsideReading
from glimprouter.policies.base import Glimpse, Judgement, Policy, Verdict, WrittenStep
from glimprouter.policies.checks import check_number

QUESTION = (
    "\n\nBefore going on, look at the last step above and nothing else. Is it correct, and does it"
    " bring the solution forward? Give one digit, from 0 (wrong or useless) to 9 (certainly right"
    " and useful).\nDigit="
)
_DIGITS = 10


class SpecReason(Policy):
    """The large model writes a step anew where its own grade of it is below a threshold.

    Speculative reasoning (arXiv 2504.07891): the small model drafts every step; the large one reads
    it, and behind it a question that is answered by one digit. With ``p(d)`` the probability of the
    digit ``d`` there, the grade is ``argmax_d p(d)``, or with ``expected`` the mean
    ``sum d p(d) / sum p(d)``. A step with a grade of at least the threshold stays (the paper: 7,
    grades 0 to 9). Reading a step costs its own tokens and those of the question in one pass of the
    large model, which writes nothing for it.

    The wording of the question is ours; what a threshold means depends on it, and on the model.
    """

    def __init__(
        self,
        threshold: float = 7.0,
        *,
        expected: bool = False,
        question: str | Sequence[int] = QUESTION,
        digits: Sequence[str | int] = "0123456789",
    ) -> None:
        """The rule.

        Args:
            threshold: Least grade of a step that stays, in [0, 9]; 0 keeps every step.
            expected: Whether the grade is the mean over the digits, and not the likeliest one.
            question: Text behind the step, which is read and dropped again, or ids of the large
                model's tokenizer.
            digits: The ten answers in ascending order: texts of one token each behind the question,
                or ids.

        Raises:
            TypeError: A threshold that is no number, or a question or digits of another type.
            ValueError: Out of range, an empty question, or other than ten distinct digits.
        """
        check_number("threshold", threshold)
        if not 0.0 <= threshold <= _DIGITS - 1:
            raise ValueError(f"threshold must lie in [0, {_DIGITS - 1}], got {threshold!r}")
        if not isinstance(expected, bool):
            raise TypeError(f"expected must be True or False, got {expected!r}")
        if len(question) == 0:
            raise ValueError("question must not be empty: a digit answers it")
        if len(digits) != _DIGITS:
            raise ValueError(f"digits must be {_DIGITS} answers, for 0 to 9, got {len(digits)}")
        self.threshold = threshold
        self.expected = expected
        self.aside = Aside(question, tuple(digits))

    def before(self, glimpse: Glimpse) -> ModelName:
        """The small model drafts."""
        return "small"

    def after(self, step: WrittenStep) -> Verdict | Judgement:
        """By the grade, of steps that may be rewritten."""
        if step.aside is None:
            return "keep"
        grade = self.grade(step.aside)
        return Judgement("keep" if grade >= self.threshold else "rewrite", grade)

    def grade(self, reading: AsideReading) -> float:
        """The grade, in [0, 9]; the lower one of digits that are equally likely.

        Raises:
            ValueError: No digit has any probability.
        """
        highest = max(reading.answers)
        if highest == -math.inf:
            raise ValueError(
                f"{self.name}: the large model gives none of the ten digits any probability behind"
                " the question; word it otherwise, or name other digits"
            )
        if not self.expected:
            return float(list(reading.answers).index(highest))
        weights = [math.exp(value - highest) for value in reading.answers]
        mean = math.fsum(digit * weight for digit, weight in enumerate(weights))
        return mean / math.fsum(weights)
