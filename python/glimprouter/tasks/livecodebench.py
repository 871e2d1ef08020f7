"""LiveCodeBench: programs that are run against tests."""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import re
import zlib
from pathlib import Path
from typing import Any

from glimprouter.tasks.base import Problem
from glimprouter.tasks.code_runner import CodeTest, Limits, passes
from glimprouter.tasks.from_file import FileTask, Record, field

PROGRAM = (
    "Write a Python program that reads the input from stdin and writes the answer to stdout. Give"
    " the whole program in one block between ```python and ```."
)
FUNCTION = (
    "Complete the following Python code. Give the whole of it in one block between ```python and"
    " ```.\n\n```python\n{starter}\n```"
)
LARGEST_TESTS = 2**30  # bytes of the tests of one problem, unpacked


class LiveCodeBench(FileTask):
    """Problems of ``code_generation_lite``: an answer is right if its program passes all tests.

    Fields: ``question_content``, ``question_id``, ``starter_code``, ``public_test_cases``,
    ``private_test_cases`` (JSON, or JSON that was pickled and compressed), ``metadata``.

    Answers are checked by running them, which needs ``run_code=True``: see
    :mod:`glimprouter.tasks.code_runner` for what protects the machine, and what does not.
    """

    name = "livecodebench"
    id_fields = ("question_id",)

    def __init__(
        self, path: str | Path, run_code: bool = False, limits: Limits | None = None
    ) -> None:
        """Reads the file.

        Args:
            path: JSON lines, JSON or Parquet.
            run_code: Whether answers may be run on this machine.
            limits: Of one test; None for 6 seconds and 1024 MiB.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: Not in the format of the data set.
        """
        self.run_code = run_code
        self.limits = limits or Limits()
        self.checker = "tests are run" if run_code else "none: run_code is off"
        self._tests: dict[str, list[CodeTest]] = {}
        super().__init__(path)

    def problem_of(self, record: Record, key: str, where: str) -> Problem:
        """The problem of a record; ``where`` says in errors which one it is."""
        question = field(record, ("question_content",), where)
        starter = str(record.get("starter_code") or "").strip()
        instruction = FUNCTION.format(starter=starter) if starter else PROGRAM
        self._tests[key] = tests_of(record, where)
        return Problem(key, f"{question}\n\n{instruction}", "")

    def is_correct(self, problem: Problem, answer: str) -> bool:
        """Whether the last block of code in the answer passes all tests of the problem.

        Raises:
            PermissionError: Code is not to be run.
        """
        if not self.run_code:
            raise PermissionError(
                "answers of livecodebench are programs that a model wrote: checking them runs them"
                " on this machine. Allow it with run_code=True (in a container, if in doubt)"
            )
        blocks = re.findall(r"```(?:python|py)?[^\S\n]*\n(.*?)```", answer, flags=re.DOTALL)
        return bool(blocks) and passes(blocks[-1], self._tests[problem.key], self.limits)


def tests_of(record: Record, where: str) -> list[CodeTest]:
    """Public and private tests of a record.

    Raises:
        ValueError: Tests that cannot be read, or none.
    """
    metadata = _json_of(record.get("metadata") or "{}", f"{where}, metadata")
    function = metadata.get("func_name") if isinstance(metadata, dict) else None
    tests = []
    for name in ("public_test_cases", "private_test_cases"):
        for test in _json_of(record.get(name) or "[]", f"{where}, {name}"):
            if not isinstance(test, dict) or not {"input", "output"} <= test.keys():
                raise ValueError(f"{where}, {name}: a test must have input and output: {test!r}")
            is_call = test.get("testtype") == "functional"
            if is_call and not function:
                raise ValueError(f"{where}: metadata must name the function as func_name")
            called = str(function) if is_call else None
            tests.append(CodeTest(str(test["input"]), str(test["output"]), called))
    if not tests:
        raise ValueError(f"{where} has no tests")
    return tests


class _TextUnpickler(pickle.Unpickler):
    """Takes text and nothing else: a pickle may otherwise run anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, text was expected")


def _json_of(value: Any, where: str) -> Any:
    """The value of JSON text, or of such text pickled, compressed and in base 64."""
    if not isinstance(value, str):
        return value
    if value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: no JSON: {error}") from None
    try:
        inflater = zlib.decompressobj()
        packed = inflater.decompress(base64.b64decode(value, validate=True), LARGEST_TESTS)
        return json.loads(_TextUnpickler(io.BytesIO(packed)).load())
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, TypeError) as error:
        raise ValueError(f"{where}: neither JSON nor packed JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"{where}: packed text is no JSON: {error}") from None
