"""Makes all pairs: for each task three small models and a large one, then chooses the small one.

    python benchmarks/pairs/make.py --out DIR [--tasks arithmetic search] [--seeds 1 2 3]

What is finished is kept: a run that was stopped goes on with the model that it was at. The pair of
a task is then in DIR/pairs.json, with the accuracies of all its models on both splits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from accuracy import accuracy_of
from recipes import TASKS

from glimprouter.demo_pair import large_path
from glimprouter.tasks import Task, task_of

WANTED_ACCURACY = 0.625  # of the small model: it errs often enough, and not always
PROBLEMS = {"development": 200, "report": 400}
TRAIN = Path(__file__).parent / "train.py"


def trained(out: Path, task: str, model: str, seed: int, threads: int) -> Path:
    """The folder of a model, which is trained unless it is finished."""
    folder = out / task / f"{model}-{seed}"
    if not (folder / "accuracy.json").exists():
        command = [sys.executable, str(TRAIN), "--task", task, "--model", model]
        command += ["--seed", str(seed), "--out", str(out), "--threads", str(threads)]
        subprocess.run(command, check=True)
    return folder


def accuracies(folder: Path, task: Task, cache: dict[str, Any]) -> dict[str, Any]:
    """Where a model lies and how good it is on each split; measured once."""
    if cache.get("path") != str(folder):
        cache = {"path": str(folder)}
    for split, count in PROBLEMS.items():
        if split not in cache:
            cache[split] = accuracy_of(folder, task, split, count)  # type: ignore[arg-type]
    return cache


def make_pair(
    out: Path, name: str, small_seeds: list[int], threads: int, known: dict[str, Any]
) -> dict[str, Any]:
    """Trains and measures the models of a task; the small one is chosen on development problems."""
    task = task_of(name)
    seeds = known.get("small_seeds", {})
    small = {}
    for seed in map(str, small_seeds):
        folder = trained(out, name, "small", int(seed), threads)
        small[seed] = accuracies(folder, task, seeds.get(seed, {}))
    # The large model of the embedded pair is shipped: its recipe takes the longest of all.
    folder = large_path() if name == "list_reduction" else trained(out, name, "large", 0, threads)
    large = accuracies(folder, task, known.get("large", {}))
    chosen = min(small, key=lambda seed: abs(small[seed]["development"] - WANTED_ACCURACY))
    return {
        "small": small[chosen],
        "large": large,
        "chosen_seed": int(chosen),
        "small_seeds": small,
    }


def read_index(index: Path) -> dict[str, Any]:
    """The pairs that are made."""
    pairs: dict[str, Any] = json.loads(index.read_text()) if index.exists() else {}
    return pairs


def main() -> None:
    """Parses the command line and makes the pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3], help="small models")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    index = out / "pairs.json"
    for name in arguments.tasks:
        known = read_index(index).get(name, {})
        made = make_pair(out, name, arguments.seeds, arguments.threads, known)
        # Read anew: another process may have made another pair meanwhile.
        index.write_text(json.dumps({**read_index(index), name: made}, indent=1) + "\n")
        print(f"{name}: {json.dumps(made)}", flush=True)


if __name__ == "__main__":
    main()
