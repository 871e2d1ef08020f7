"""`generate` of the large model with a static cache, which transformers compiles on a GPU.

Compiling may take minutes, so it is done in a process of its own, which is ended when the time is
over; what it measured until then counts.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from agreeing_pair import SAMPLING
from budget import Budget
from clock import Clock
from models import build
from product import ALONE, PROMPT

_ENDING = 10.0  # seconds left for what follows


def _milliseconds(clock: Clock, model: Any, rows: int, tokens: int) -> float:
    """A token of a run, prompt included, as contenders of the product are timed."""
    prompt = torch.randint(5, 290, (rows, PROMPT), device=clock.device)
    clock.synchronize()
    start = time.perf_counter()
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        cache_implementation="static",
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=True,
        top_k=0,
        pad_token_id=0,
        **SAMPLING,
    )
    clock.synchronize()
    if output.shape[1] != PROMPT + tokens:
        raise RuntimeError(f"{output.shape[1] - PROMPT} tokens were written, {tokens} were wanted")
    return 1e3 * (time.perf_counter() - start) / (rows * tokens)


def measure(clock: Clock, name: str, sizes: list[int], tokens: int, file: Path) -> None:
    """Writes a line of JSON for each number of sequences, as soon as there is one."""
    model = build(name, clock.device)
    for rows in sizes:
        start = time.perf_counter()
        _milliseconds(clock, model, rows, tokens)  # compiles
        warm_up = time.perf_counter() - start
        row = {
            "sequences": rows,
            "ms_a_token": _milliseconds(clock, model, rows, tokens),
            "first_run_seconds": warm_up,
        }
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")


def run(
    clock: Clock, name: str, sizes: tuple[int, ...], tokens: int, budget: Budget, product: Any
) -> dict[str, Any]:
    """Milliseconds a token by the number of sequences, beside the large model alone.

    Args:
        clock: Of the device.
        name: Shape of the large model.
        sizes: Numbers of sequences; those that the time does not suffice for are left out.
        tokens: Of a sequence.
        budget: When its time is over, the process is ended.
        product: What was measured of the product; None where it was not.

    Raises:
        RuntimeError: The process failed.
    """
    seconds = budget.left - _ENDING
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        command = [sys.executable, __file__, str(clock.device), name, str(tokens), str(file)]
        command += map(str, sizes)
        timeout = seconds if math.isfinite(seconds) else None
        reason = f"not compiled and measured within {seconds:.0f} s"
        try:
            subprocess.run(command, check=True, timeout=timeout, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            pass
        except subprocess.CalledProcessError as error:
            reason = "failed: " + (error.stderr.strip().splitlines() or ["no message"])[-1]
        lines = file.read_text().splitlines() if file.exists() else []
    found = {row["sequences"]: row for row in map(json.loads, lines)}
    alone = {
        row["sequences"]: row["ms_a_token"]
        for row in (product or {}).get("rows", ())
        if row.get("contender") == ALONE and "ms_a_token" in row
    }
    rows = []
    for size in sizes:
        row = found.get(size, {"sequences": size, "left_out": reason})
        if size in found and size in alone:
            row["over_large_alone"] = alone[size] / row["ms_a_token"]
        rows.append(row)
    return {"model": name, "cache_implementation": "static", "rows": rows}


def main() -> None:
    """In a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device")
    parser.add_argument("name")
    parser.add_argument("tokens", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("sizes", type=int, nargs="+")
    options = parser.parse_args()
    clock = Clock(torch.device(options.device))
    measure(clock, options.name, options.sizes, options.tokens, options.file)


if __name__ == "__main__":
    main()
