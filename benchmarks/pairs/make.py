"""Makes all pairs: for each some small models and a large one, of which one small one is chosen.

    python benchmarks/pairs/make.py --out DIR [--pairs arithmetic search] [--jobs 2]

Each task has a pair of its name; further ones vary one thing (recipes.py). What is finished is
kept: a run that was stopped goes on with the models that it was at. A pair is then in
DIR/pairs.json, with the accuracies of all its models on both splits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from accuracy import accuracy_of
from recipes import GAPS, PAIRS

from glimprouter.demo_pair import large_path
from glimprouter.files import write_atomically
from glimprouter.tasks import Task, task_of

WANTED_ACCURACY = 0.625  # of the small model: it errs often enough, and not always
PROBLEMS = {"development": 200, "report": 400}
TRAIN = Path(__file__).parent / "train.py"


def trained(out: Path, name: str, model: str, seed: int) -> Path:
    """The folder of a model, which is trained unless it is finished."""
    folder = out / name / f"{model}-{seed}"
    if not (folder / "accuracy.json").exists():
        command = [sys.executable, str(TRAIN), "--pair", name, "--model", model]
        command += ["--seed", str(seed), "--out", str(out)]
        if model == "weak":  # or it might be the small one, whose next copy was good enough
            command += ["--every", "10"]
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


def make_pair(out: Path, name: str, index: dict[str, Any]) -> dict[str, Any]:
    """Trains and measures the models of a pair; the small one is chosen on development problems.

    Args:
        out: Where models go.
        name: Of the pair.
        index: What is known of all pairs.
    """
    recipe, known = PAIRS[name], index.get(name, {})
    owner = recipe.large_of or name
    task = task_of(recipe.task)
    seeds = known.get("small_seeds", {})
    small = {}
    for seed in range(1, recipe.small_seeds + 1):
        folder = trained(out, name, "small", seed)
        small[str(seed)] = accuracies(folder, task, seeds.get(str(seed), {}))
    # The large model of the embedded pair is shipped: its recipe takes the longest of all.
    folder = large_path() if owner == "list_reduction" else trained(out, owner, "large", 0)
    large = accuracies(folder, task, index.get(owner, {}).get("large", {}))
    chosen = min(small, key=lambda seed: abs(small[seed]["development"] - WANTED_ACCURACY))
    gaps = known.get("gaps", {})
    return {
        "task": recipe.task,
        "small": small[chosen],
        "large": large,
        "chosen_seed": int(chosen),
        "small_seeds": small,
        "gaps": {
            model: accuracies(trained(out, name, model, int(chosen)), task, gaps.get(model, {}))
            for model in (GAPS if recipe.gaps else ())
        },
    }


def read_index(index: Path) -> dict[str, Any]:
    """The pairs that are made."""
    pairs: dict[str, Any] = json.loads(index.read_text()) if index.exists() else {}
    return pairs


def main() -> None:
    """Parses the command line and makes the pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", nargs="*", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--jobs", type=int, default=1, help="pairs that are made at a time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    index, writing = out / "pairs.json", Lock()

    def make(name: str) -> None:
        made = make_pair(out, name, read_index(index))
        with writing:
            write_atomically(index, json.dumps({**read_index(index), name: made}, indent=1) + "\n")
        print(f"{name}: {json.dumps(made)}", flush=True)

    borrowing = [name for name in arguments.pairs if PAIRS[name].large_of is not None]
    owning = [name for name in arguments.pairs if name not in borrowing]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for names in (owning, borrowing):  # two would train the same large model
            for done in [pool.submit(make, name) for name in names]:
                done.result()


if __name__ == "__main__":
    main()
