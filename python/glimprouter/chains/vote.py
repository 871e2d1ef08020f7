"""The answer that most chains came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Vote(NamedTuple):
    """What a vote came to.

    Attributes:
        answer: The most frequent one; of equally frequent ones, the first that came. Empty where
            there was none.
        votes: For it.
        cast: Answers that counted: those with text.
    """

    answer: str
    votes: int
    cast: int


def majority(answers: Iterable[str]) -> Vote:
    """The most frequent answer; white space around them does not count, nor do empty ones."""
    counted = Counter(stripped for answer in answers if (stripped := answer.strip()))
    if not counted:
        return Vote("", 0, 0)
    answer, votes = counted.most_common(1)[0]  # in order of their first coming
    return Vote(answer, votes, counted.total())
