"""Families of step-by-step problems with exact checkers."""

from __future__ import annotations

from glimprouter.tasks.base import Problem, Split, Task

__all__ = ["Problem", "Split", "Task"]
