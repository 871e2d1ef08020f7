"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glimprouter.tasks.arithmetic import Arithmetic, ArithmeticResultFirst
from glimprouter.tasks.base import Task
from glimprouter.tasks.competition_math import CompetitionMath
from glimprouter.tasks.gpqa import GpqaDiamond
from glimprouter.tasks.list_reduction import ListReduction
from glimprouter.tasks.livecodebench import LiveCodeBench
from glimprouter.tasks.repair import Repair
from glimprouter.tasks.search import Search

GENERATED: dict[str, Callable[[], Task]] = {
    task.name: task for task in (ListReduction, Arithmetic, ArithmeticResultFirst, Search, Repair)
}
FROM_FILES: dict[str, Callable[[str | Path], Task]] = {
    "aime24": lambda path: CompetitionMath("aime24", path),
    "aime25": lambda path: CompetitionMath("aime25", path),
    "math500": lambda path: CompetitionMath("math500", path),
    "gpqa_diamond": GpqaDiamond,
}


def task_names() -> tuple[str, ...]:
    """The names that :func:`task_of` knows: first those of drawn problems, then those of files."""
    return (*GENERATED, *FROM_FILES, LiveCodeBench.name)


def task_of(name: str, path: str | Path | None = None, *, run_code: bool = False) -> Task:
    """The task of a name.

    Args:
        name: One of :func:`task_names`.
        path: The file of a task that reads one; None for the others.
        run_code: Whether programs that a model wrote may be run to check them (livecodebench).

    Raises:
        ValueError: An unknown name, a missing path, a path that the task does not read, or a file
            that is not in the format of the data set.
        FileNotFoundError: There is no such file.
        ImportError: A Parquet file without pyarrow.
    """
    if name not in task_names():
        raise ValueError(f"no task is called {name!r}; there are: {', '.join(task_names())}")
    if name in GENERATED:
        if path is not None:
            raise ValueError(f"the problems of {name} are drawn, it reads no file: got {path}")
        return GENERATED[name]()
    if path is None:
        raise ValueError(f"{name} needs the path of its file")
    if name == LiveCodeBench.name:
        return LiveCodeBench(path, run_code)
    return FROM_FILES[name](path)
