"""Families of step-by-step problems with exact checkers, and loaders of public data sets."""

from __future__ import annotations

from glimprouter.tasks.base import Problem, Split, Task
from glimprouter.tasks.code_runner import Limits
from glimprouter.tasks.competition_math import CompetitionMath
from glimprouter.tasks.from_file import FileTask
from glimprouter.tasks.generated import Chain, GeneratedTask
from glimprouter.tasks.gpqa import GpqaDiamond
from glimprouter.tasks.livecodebench import LiveCodeBench
from glimprouter.tasks.registry import task_names, task_of

__all__ = [
    "Chain",
    "CompetitionMath",
    "FileTask",
    "GeneratedTask",
    "GpqaDiamond",
    "Limits",
    "LiveCodeBench",
    "Problem",
    "Split",
    "Task",
    "task_names",
    "task_of",
]
