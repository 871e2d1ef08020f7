"""The task of the embedded pair: reduce a list of two-digit numbers to one.

Until one number is left: take the two smallest a <= b and replace them by f(a, b), appended at the
end; f = b - a if both have the same parity, else (3 a + b) mod 100. The answer is the last number.

Standard library only: the training script loads this file by its path.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

MIN_NUMBERS = 3
MAX_NUMBERS = 7
HELD_OUT_MODULUS = 20  # lists whose CRC32 is 0 modulo this are never trained on


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        numbers: The list, each in [0, 99].
        prompt: The user message, for example ``Reduce 18,39,12,93,09``.
        answer: The last number, two digits.
    """

    numbers: tuple[int, ...]
    prompt: str
    answer: str


def format_number(number: int) -> str:
    """Two digits."""
    return f"{number:02d}"


def format_list(numbers: Sequence[int]) -> str:
    """Comma-separated two-digit numbers."""
    return ",".join(map(format_number, numbers))


def combine(a: int, b: int) -> int:
    """f(a, b) for a <= b."""
    return b - a if a % 2 == b % 2 else (3 * a + b) % 100


def reduce_once(numbers: Sequence[int]) -> tuple[int, int, int, tuple[int, ...]]:
    """The two smallest numbers, their combination, and the list after the replacement."""
    rest = list(numbers)
    a = min(rest)
    rest.remove(a)
    b = min(rest)
    rest.remove(b)
    combined = combine(a, b)
    return a, b, combined, (*rest, combined)


def problem_of(numbers: Sequence[int]) -> Problem:
    """The problem for a list of numbers."""
    left = tuple(numbers)
    while len(left) > 1:
        left = reduce_once(left)[3]
    return Problem(tuple(numbers), f"Reduce {format_list(numbers)}", format_number(left[0]))


def is_held_out(numbers: Sequence[int]) -> bool:
    """Whether the list belongs to the held-out problems."""
    return zlib.crc32(format_list(numbers).encode()) % HELD_OUT_MODULUS == 0


def random_numbers(generator: random.Random, max_numbers: int = MAX_NUMBERS) -> tuple[int, ...]:
    """A list of MIN_NUMBERS to ``max_numbers`` numbers."""
    count = generator.randint(MIN_NUMBERS, max_numbers)
    return tuple(generator.randrange(100) for _ in range(count))


def held_out_problems(count: int, seed: int) -> list[Problem]:
    """``count`` distinct problems that training never saw, the same for the same seed.

    Raises:
        ValueError: ``count`` is negative.
    """
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}")
    generator = random.Random(seed)
    problems: dict[tuple[int, ...], Problem] = {}
    while len(problems) < count:
        numbers = random_numbers(generator)
        if is_held_out(numbers):
            problems.setdefault(numbers, problem_of(numbers))
    return list(problems.values())


def is_correct(problem: Problem, answer_text: str) -> bool:
    """Whether the answer is exactly the last number (white space around it does not count)."""
    return answer_text.strip() == problem.answer
