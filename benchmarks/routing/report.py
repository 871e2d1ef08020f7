"""Does routing pay? Every policy on every task's trained pair: one command, one report.

    python benchmarks/pairs/make.py --out PAIRS          # once: trains the pairs
    python benchmarks/routing/report.py --pairs PAIRS --records RECORDS --out OUT

Each pair is evaluated with all policies, and on fewer problems with rules that are dear and with
systems around the chain; the other small models of its task, and other temperatures, with some.
What is recorded in RECORDS is not run again. OUT gets the report of the four pairs (report.html,
report.md), once for each of these two, and a summary over all that ran (summary.md, summary.json).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from summary import SYSTEMS, write_summary

from glimprouter.demo_pair import large_path, small_path
from glimprouter.evaluation.report import write_report

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
    "step-perplexity:large_tokens=1",
    "learned",
    "wanted-share",
    "hysteresis",
    "mixture",
    "reward",
    "reward:large_tokens=1",
)
# Dear: steps are written several times, questions are read, chains are written one by one. No model
# that is trained here understands a question (spec-reason) or the solutions of others (a2r).
DEAR = (
    "random",
    "entropy",
    "step-entropy",
    "spec-cot",
    "arbitrage-oracle",
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
        task: Its name.
        small: Folder of the small model.
        large: Of the large one.
        policies: That run.
        temperature: Of the sampling.
        batches: Further batch sizes, for seconds.
    """

    name: str
    task: str
    small: str
    large: str
    policies: Sequence[str] = FEW
    temperature: float = 0.6
    batches: str = ""

    @property
    def whole(self) -> bool:
        """Whether all policies run, with probes."""
        return self.policies is ALL

    @property
    def dear(self) -> bool:
        """Whether those run that are dear."""
        return self.policies is DEAR

    def command(self, records: Path, problems: int, seeds: int) -> list[str]:
        """Of the evaluation."""
        few = max(problems // 2, 2)
        sizes = {
            "--problems": problems if self.whole else few,
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


def jobs_of(pairs: Path) -> Iterator[Job]:
    """The evaluations of all pairs that are there, the long ones first."""
    known = json.loads((pairs / "pairs.json").read_text())
    embedded = str(small_path()), str(large_path())
    yield Job("embedded", "list_reduction", *embedded, ALL, batches="1,8")
    others = [Job("embedded-dear", "list_reduction", *embedded, DEAR)]
    for task, pair in known.items():
        large = pair["large"]["path"]
        for seed, small in pair["small_seeds"].items():
            name = f"{task}-small-{seed}"
            if seed == str(pair["chosen_seed"]) and task != "list_reduction":
                yield Job(name, task, small["path"], large, ALL)
                others.append(Job(f"{name}-dear", task, small["path"], large, DEAR))
            else:
                others.append(Job(name, task, small["path"], large))
    for temperature in TEMPERATURES:
        name = f"embedded-temperature-{temperature:g}"
        others.append(Job(name, "list_reduction", *embedded, temperature=temperature))
    yield from others


def run(job: Job, records: Path, problems: int, seeds: int) -> None:
    """One evaluation, in a process of its own.

    Raises:
        RuntimeError: It failed; its last lines are in the message.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = job.command(records, problems, seeds)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{job.name} failed:\n{done.stderr[-2000:]}")
    print(f"{job.name}: done", flush=True)


def run_all(jobs: Sequence[Job], records: Path, problems: int, seeds: int, processes: int) -> None:
    """All evaluations, some at a time."""
    with ThreadPoolExecutor(processes) as pool:
        for future in [pool.submit(run, job, records, problems, seeds) for job in jobs]:
            future.result()


def main() -> None:
    """Parses the command line, runs what is missing, and writes both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=Path, required=True, help="folder of pairs/make.py")
    parser.add_argument("--records", type=Path, required=True, help="where evaluations go")
    parser.add_argument("--out", type=Path, required=True, help="where the report goes")
    parser.add_argument("--problems", type=int, default=100, help="of each whole evaluation")
    parser.add_argument("--seeds", type=int, default=2, help="of each whole evaluation")
    parser.add_argument("--processes", type=int, default=2, help="evaluations at a time")
    arguments = parser.parse_args()
    jobs = list(jobs_of(arguments.pairs))
    started = time.monotonic()
    sizes = arguments.problems, arguments.seeds
    run_all(jobs, arguments.records, *sizes, arguments.processes)
    paths: list[Path] = []
    for kind, folder in (("whole", arguments.out), ("dear", arguments.out / "dear")):
        chosen = [arguments.records / job.name for job in jobs if getattr(job, kind)]
        paths += write_report(chosen, folder)
    folders = {job.name: arguments.records / job.name for job in jobs}
    paths += write_summary(folders, arguments.out)
    for path in paths:
        print(path)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes for what was not recorded before")


if __name__ == "__main__":
    main()
