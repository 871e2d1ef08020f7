"""The evaluations that the report is made of."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from summary import SYSTEMS

from glimprouter.demo_pair import large_path, small_path

SHARES = "0.1,0.25"
FEW = ("random", "entropy", "step-entropy", "entropy:large_tokens=1")
ALL = (
    *FEW,
    "entropy:large_tokens=2",
    "entropy:large_tokens=4",
    "entropy:entropy_top_k=20",
    "entropy:drafts=0",
    "large-alone:drafts=0",
    "max-probability",
    "margin",
    "varentropy",
    "step-perplexity",
    "learned",
    "wanted-share",
    "hysteresis",
    "mixture",
    "reward",
)
# Dear: steps are written several times, questions are read, chains are written one by one. No model
# that is trained here understands a question (spec-reason) or the solutions of others (a2r).
DEAR = (
    "random",
    "entropy",
    "step-entropy",
    "spec-cot",
    "arbitrage-oracle",
    "spec-reason",
    "spec-reason:expected=1",
    *SYSTEMS,
)
DRAFTS = 8  # they change passes and time, no text: a fixed number, so that no clock is followed
TEMPERATURES = (0.0, 1.0)  # beside the default, 0.6
LIMITS = ("--max-step-tokens", "64", "--max-think-tokens", "400", "--max-answer-tokens", "24")


@dataclass(frozen=True)
class Job:
    """One evaluation.

    Attributes:
        name: Of its folder.
        family: Of its pair: the task that the pair's task is a form of.
        task: Its name.
        small: Folder of the small model.
        large: Of the large one.
        varies: What is unlike the pair that the report is of, in words.
        policies: That run.
        temperature: Of the sampling.
        batches: Further batch sizes, for seconds.
    """

    name: str
    family: str
    task: str
    small: str
    large: str
    varies: str = "nothing"
    policies: Sequence[str] = FEW
    temperature: float = 0.6
    batches: str = ""

    @property
    def whole(self) -> bool:
        """Whether all policies run, with probes."""
        return self.policies == ALL

    @property
    def dear(self) -> bool:
        """Whether those run that are dear."""
        return self.policies == DEAR

    def command(self, records: Path, problems: int, seeds: int) -> list[str]:
        """Of the evaluation."""
        few = max(problems // 2, 2)
        sizes = {
            "--problems": few if self.dear else problems,
            "--development-problems": max(problems * 2 // 5, 2),
            "--probe-problems": few if self.whole else 0,
            "--seeds": seeds if self.whole or self.dear else 1,
            "--batch": 32,
            "--temperature": self.temperature,
            "--drafts": DRAFTS,
            "--timing-batches": self.batches,
            "--timing-problems": min(few, 8),
            "--threads": 1,
        }
        command = [sys.executable, "-m", "glimprouter", "evaluate", "run", "--plain"]
        command += ["--small", self.small, "--large", self.large, "--task", self.task]
        command += ["--out", str(records / self.name), "--shares", SHARES, *LIMITS]
        for name, value in sizes.items():
            command += [name, str(value)]
        for policy in self.policies:
            command += ["--policy", policy]
        return command


def jobs_of(pairs: Path) -> list[Job]:
    """The evaluations of all pairs that are there, the long ones first."""
    known: dict[str, Any] = json.loads((pairs / "pairs.json").read_text())
    jobs = list(_embedded(known.get("list_reduction")))
    for name, pair in known.items():
        if name == pair["task"] != "list_reduction":
            jobs += _pair(name, pair)
        elif name != "list_reduction":
            jobs += _variation(name, pair)
    return sorted(jobs, key=lambda job: (not job.whole, not job.dear))


def _embedded(trained: Mapping[str, Any] | None) -> Iterator[Job]:
    """The pair that is shipped, and the other small models of its task."""
    task = "list_reduction"
    models = task, task, str(small_path()), str(large_path())
    yield Job("embedded", *models, policies=ALL, batches="1,8")
    yield Job("embedded-dear", *models, policies=DEAR)
    yield from _at_temperatures("embedded", models)
    for seed, small in (trained["small_seeds"] if trained else {}).items():
        paths = small["path"], str(large_path())
        yield Job(f"{task}-small-{seed}", task, task, *paths, f"another small model ({seed})")


def _pair(task: str, pair: Mapping[str, Any]) -> Iterator[Job]:
    """The pair of a task, with all its small models."""
    large = pair["large"]["path"]
    models = task, task, pair["small"]["path"], large
    yield Job(task, *models, policies=ALL)
    yield Job(f"{task}-dear", *models, policies=DEAR)
    yield from _at_temperatures(task, models)
    for seed, small in pair["small_seeds"].items():
        if seed != str(pair["chosen_seed"]):
            varies = f"another small model ({seed})"
            yield Job(f"{task}-small-{seed}", task, task, small["path"], large, varies)
    for gap, small in pair["gaps"].items():
        yield Job(f"{task}-{gap}", task, task, small["path"], large, f"a {gap} small model")


def _variation(name: str, pair: Mapping[str, Any]) -> Iterator[Job]:
    """A pair that varies one thing, with all its small models."""
    family, _, varied = name.partition("-")
    for seed, small in pair["small_seeds"].items():
        varies = f"{varied.replace('-', ' ')} ({seed})"
        paths = small["path"], pair["large"]["path"]
        yield Job(f"{name}-small-{seed}", family, pair["task"], *paths, varies)


def _at_temperatures(name: str, models: tuple[str, str, str, str]) -> Iterator[Job]:
    for temperature in TEMPERATURES:
        yield Job(
            f"{name}-temperature-{temperature:g}",
            *models,
            varies=f"temperature {temperature:g}",
            temperature=temperature,
        )
