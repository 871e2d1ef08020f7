"""GPQA-Diamond: four options, of which one is right."""

from __future__ import annotations

import random
import re
from pathlib import Path

from glimprouter.tasks.base import Problem
from glimprouter.tasks.from_file import FileTask, Record, field
from glimprouter.tasks.math_answers import last_boxed

LETTERS = "ABCD"
INSTRUCTION = "Please reason step by step, and put the letter of the right option within \\boxed{}."


class GpqaDiamond(FileTask):
    """Multiple choice, with options in an order that a seed gives.

    Fields, as in ``gpqa_diamond.csv``: ``Question``, ``Correct Answer``, ``Incorrect Answer 1`` to
    ``3``, and ``Record ID`` if there is one.
    """

    name = "gpqa_diamond"
    checker = "letter of the option"
    id_fields = ("Record ID",)

    def __init__(self, path: str | Path, shuffle_seed: int = 0) -> None:
        """Reads the file.

        Args:
            path: CSV, JSON lines, JSON or Parquet.
            shuffle_seed: Gives, with the question, the order of its options.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: Not in the format of the data set.
        """
        self.shuffle_seed = shuffle_seed
        super().__init__(path)

    def problem_of(self, record: Record, key: str, where: str) -> Problem:
        """The problem of a record; ``where`` says in errors which one it is."""
        question = field(record, ("Question",), where)
        right = field(record, ("Correct Answer",), where)
        options = [right, *(field(record, (f"Incorrect Answer {i}",), where) for i in (1, 2, 3))]
        if len(set(options)) < len(options):
            raise ValueError(f"{where}: two options are the same")
        random.Random(f"{self.shuffle_seed}/{question}").shuffle(options)
        listed = "\n".join(f"{a}) {text}" for a, text in zip(LETTERS, options, strict=True))
        prompt = f"{question}\n\n{listed}\n\n{INSTRUCTION}"
        return Problem(key, prompt, LETTERS[options.index(right)])

    def is_correct(self, problem: Problem, answer: str) -> bool:
        """Whether the letter in the last box, or else the last that is named, is the right one."""
        return chosen_letter(answer) == problem.answer

    def vote_key(self, answer: str) -> str:
        """The letter."""
        return chosen_letter(answer) or ""


def chosen_letter(answer: str) -> str | None:
    """The letter that an answer chooses; None if it names none.

    The last box; else the last "answer is C", "answer: (C)"; else an answer that is the letter
    alone.
    """
    boxed = last_boxed(answer)
    if boxed is not None:
        text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", boxed)
        match = re.fullmatch(r"\s*\(?([A-D])\)?(?:[.):]?(?![A-Za-z]).*)?", text, flags=re.DOTALL)
        return match[1] if match else None
    named = re.findall(
        r"answer\s*(?:is|:)\s*[*$(]*(?:option\s+)?\(?([A-D])(?![A-Za-z])", answer, re.IGNORECASE
    )
    if named:
        return str(named[-1]).upper()
    match = re.fullmatch(r"[*(\s]*([A-D])[.)*\s]*", answer)
    return match[1] if match else None
