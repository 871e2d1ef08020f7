"""Does routing pay? Every policy on every task's trained pair: one command, one report.

    python benchmarks/pairs/make.py --out PAIRS          # once: trains the pairs
    python benchmarks/routing/report.py --pairs PAIRS --records RECORDS --out OUT

Each pair is evaluated with all policies, and on fewer problems with rules that are dear and with
systems around the chain; with some it is evaluated at other temperatures, with the task's other
small models, and in a variation of the task or the tokenizer, so that causes can be told apart.
What is recorded in RECORDS is not run again. OUT gets the report of the four pairs (report.html,
report.md), once for each of these two, and a summary over all that ran (summary.md, summary.json).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from jobs import Job, jobs_of
from summary import write_summary

from glimprouter.evaluation.report import write_report


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


def written(jobs: Sequence[Job], records: Path, out: Path, processes: int) -> list[Path]:
    """The files of both reports and of the summary, each made by a process of its own."""
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        made = [pool.submit(write_summary, jobs, records, out)]
        for kind, folder in (("whole", out), ("dear", out / "dear")):
            chosen = [records / job.name for job in jobs if getattr(job, kind)]
            made.append(pool.submit(write_report, chosen, folder))
        return [path for each in made for path in each.result()]


def main() -> None:
    """Parses the command line, runs what is missing, and writes both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=Path, required=True, help="folder of pairs/make.py")
    parser.add_argument("--records", type=Path, required=True, help="where evaluations go")
    parser.add_argument("--out", type=Path, required=True, help="where the report goes")
    parser.add_argument("--problems", type=int, default=100, help="half of them if dear")
    parser.add_argument("--seeds", type=int, default=2, help="of whole and dear ones")
    parser.add_argument("--processes", type=int, default=2, help="evaluations at a time")
    arguments = parser.parse_args()
    jobs = jobs_of(arguments.pairs)
    started = time.monotonic()
    sizes = arguments.problems, arguments.seeds
    run_all(jobs, arguments.records, *sizes, arguments.processes)
    for path in written(jobs, arguments.records, arguments.out, arguments.processes):
        print(path)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes for what was not recorded before")


if __name__ == "__main__":
    main()
