"""Tasks by name."""

from __future__ import annotations

from pathlib import Path

from glimprouter.tasks.arithmetic import Arithmetic
from glimprouter.tasks.base import Task
from glimprouter.tasks.list_reduction import ListReduction
from glimprouter.tasks.repair import Repair
from glimprouter.tasks.search import Search

GENERATED = {task.name: task for task in (ListReduction, Arithmetic, Search, Repair)}


def task_names() -> tuple[str, ...]:
    """The names that :func:`task_of` knows."""
    return tuple(GENERATED)


def task_of(name: str, path: str | Path | None = None) -> Task:
    """The task of a name.

    Args:
        name: One of :func:`task_names`.
        path: The file of a task that reads one; None for the others.

    Raises:
        ValueError: An unknown name, a missing path, or a path that the task does not read.
    """
    if name not in GENERATED:
        raise ValueError(f"no task is called {name!r}; there are: {', '.join(task_names())}")
    if path is not None:
        raise ValueError(f"the problems of {name} are drawn, it reads no file: got {path}")
    return GENERATED[name]()
