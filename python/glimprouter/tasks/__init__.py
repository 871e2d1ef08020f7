"""Families of step-by-step problems with exact checkers."""

from __future__ import annotations

from glimprouter.tasks.base import Problem, Split, Task
from glimprouter.tasks.generated import Chain, GeneratedTask
from glimprouter.tasks.registry import task_names, task_of

__all__ = ["Chain", "GeneratedTask", "Problem", "Split", "Task", "task_names", "task_of"]
