r"""AIME 2024, AIME 2025 and MATH-500: problems whose answer stands in a box."""

from __future__ import annotations

from pathlib import Path

from glimprouter.tasks.base import Problem
from glimprouter.tasks.from_file import FileTask, Record, field
from glimprouter.tasks.math_answers import (
    has_math_verify,
    normalised,
    same_by_math_verify,
    same_text,
    stated_answer,
    value_of,
)

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


class CompetitionMath(FileTask):
    r"""Problems with a mathematical answer.

    Fields: ``problem``, ``Problem`` or ``question``; ``answer`` or ``Answer``.

    Attributes:
        checker: Who compares answers: ``"math-verify"`` where it is installed, else
            ``"normalised text"``, which knows equal numbers but no equal formulas.
    """

    id_fields = ("unique_id", "id", "ID", "problem_idx")

    def __init__(self, name: str, path: str | Path, use_math_verify: bool | None = None) -> None:
        """Reads the file.

        Args:
            name: Of the task.
            path: JSON lines, JSON, CSV or Parquet.
            use_math_verify: None for whether it is installed.

        Raises:
            ImportError: math-verify is asked for and not installed.
            FileNotFoundError: There is no such file.
            ValueError: Not in the format of the data set.
        """
        self.name = name
        super().__init__(path)
        if use_math_verify and not has_math_verify():
            raise ImportError("pip install 'math-verify[antlr4_13_2]', or compare by text")
        self._use_math_verify = has_math_verify() if use_math_verify is None else use_math_verify
        self.checker = "math-verify" if self._use_math_verify else "normalised text"

    def problem_of(self, record: Record, key: str, where: str) -> Problem:
        """The problem of a record; ``where`` says in errors which one it is."""
        question = field(record, ("problem", "Problem", "question"), where)
        answer = field(record, ("answer", "Answer"), where)
        return Problem(key, f"{question}\n\n{INSTRUCTION}", answer)

    def vote_key(self, answer: str) -> str:
        """What the answer states, and of a number its value."""
        stated = normalised(stated_answer(answer))
        value = value_of(stated)
        return stated if value is None else str(value)

    def is_correct(self, problem: Problem, answer: str) -> bool:
        r"""Whether the last box of the answer, or what it states else, equals the right one."""
        if same_text(stated_answer(answer), problem.answer):
            return True
        return self._use_math_verify and same_by_math_verify(answer, problem.answer)
