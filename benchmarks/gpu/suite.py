"""Everything that needs a GPU, in one run: `python benchmarks/gpu/suite.py --json FILE`.

`--device cpu --smoke` runs the same code on toys, to find out whether it runs at all. With
`--seconds` what does not fit any more is left out, and the result says so.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import decode
import fused_op
import hybrid
import kv_pages
import layers
import product
import static_generate
import torch
from budget import Budget
from clock import Clock
from models import VOCABULARY

from glimprouter.bench.harness import describe_machine
from glimprouter.files import write_atomically

ROOT = Path(__file__).parents[2]
LARGE_MEMORY = 110 << 30  # bytes that 4B and 32B with their caches need side by side


def _commit() -> str:
    """Of the tree, or what GLIMPROUTER_COMMIT names where the tree came without its history."""
    if named := os.environ.get("GLIMPROUTER_COMMIT"):
        return named
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return finished.stdout.strip() or "unknown"


def _describe(device: torch.device) -> dict[str, Any]:
    machine = describe_machine() | {"commit": _commit()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return machine


class Part(NamedTuple):
    """One measurement.

    Attributes:
        run: Measures within a budget; told of the report so far, and whom to tell of its own.
        seconds: That it takes, about, on an H200: where fewer are left, it is left out.
        reserved: Whether the parts before it leave it that time.
        claim: Seconds that it may take though nothing is left for those behind it.
    """

    run: Callable[[Budget, Mapping[str, Any], product.Keep], Any]
    seconds: float = 0.0
    reserved: bool = True
    claim: float = 0.0


def _plain(run: Callable[[], Any], seconds: float = 0.0, *, reserved: bool = True) -> Part:
    """A part that asks for no budget."""
    return Part(lambda *_: run(), seconds, reserved)


def toys(clock: Clock) -> dict[str, Part]:
    """The measurements by name, as short as they can be."""
    pair, sizes = ("toy pair, small", "toy pair, large"), (4,)
    return {
        "product": Part(lambda budget, _, keep: product.run(clock, pair, sizes, budget, keep)),
        "decode": _plain(lambda: decode.run(clock, ("toy",), 16, 6)),
        "layers": _plain(lambda: layers.run(clock, ("toy",), (1, 2))),
        "kv_pages": _plain(lambda: kv_pages.run(clock, "toy", (64,), (1, 3))),
        "fused_op": _plain(lambda: fused_op.run(clock, 3000, (1, 4))),
        "hybrid": _plain(lambda: hybrid.run(clock, "toy", (1, 2))),
        "generate_static": Part(
            lambda budget, report, _: static_generate.run(
                clock, pair[1], sizes, 6, budget, report.get("product")
            )
        ),
    }


def parts(clock: Clock) -> dict[str, Part]:
    """The measurements by name, those that matter most first."""
    memory = torch.cuda.get_device_properties(clock.device).total_memory
    pair = ("4B", "32B" if memory > LARGE_MEMORY else "8B")
    contexts, batches = (512, 4096, 16_384), (1, 16, 64)
    return {
        "product": Part(
            lambda budget, _, keep: product.run(clock, pair, (64, 1, 16, 4), budget, keep),
            60,
            claim=150,
        ),
        "decode": _plain(lambda: decode.run(clock, pair, 512, 48), 110),
        "layers": _plain(lambda: layers.run(clock, pair), 20),
        "kv_pages": _plain(lambda: kv_pages.run(clock, "4B", contexts, batches), 20),
        "fused_op": _plain(lambda: fused_op.run(clock, VOCABULARY), 25),
        "hybrid": _plain(lambda: hybrid.run(clock, "2B", (1, 16)), 20),
        "generate_static": Part(
            lambda budget, report, _: static_generate.run(
                clock, pair[1], (1, 16), 64, budget, report.get("product")
            ),
            60,
            reserved=False,
        ),
        "decode_compiled": _plain(
            lambda: decode.run(clock, pair[:1], 512, 48, decode.COMPILED), 90, reserved=False
        ),
    }


def measure(
    measurements: Mapping[str, Part], budget: Budget, report: dict[str, Any], file: Path
) -> list[str]:
    """Runs some parts and writes the report whenever something was added to it.

    Returns:
        The parts that failed.
    """
    failed = []

    def write(name: str, found: Any) -> None:
        report[name] = found
        write_atomically(file, json.dumps(report, indent=2, default=str) + "\n")

    waiting = dict(measurements)
    for name, part in measurements.items():
        del waiting[name]
        start = time.perf_counter()
        if refusal := budget.refusal(part.seconds):
            write(name, {"left_out": refusal})
            continue
        later = sum(other.seconds for other in waiting.values() if other.reserved)
        own = budget.share(max(part.seconds, part.claim, budget.left - later))
        try:
            write(name, part.run(own, report, functools.partial(write, name)))
        except Exception as error:  # what was measured and what is left must not be lost
            failure = f"{type(error).__name__}: {error}"
            write(name, {**report.get(name, {}), "failed": failure})
            failed.append(name)
        print(json.dumps({name: report[name]}, indent=1, default=str), flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        gc.collect()  # models and graphs of the part
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return failed


def main() -> None:
    """Runs the suite; a part that fails is reported in the result, the others go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    parser.add_argument("--device", default="cuda:0", help="of torch (default: cuda:0)")
    parser.add_argument("--smoke", action="store_true", help="toys, a few seconds")
    parser.add_argument("--part", action="append", help="only this measurement; may be repeated")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="what does not fit is left out"
    )
    options = parser.parse_args()
    budget = Budget(options.seconds)
    device = torch.device(options.device)
    clock = Clock(device, repeats=3 if options.smoke else 30, copies=2 if options.smoke else 20)
    report: dict[str, Any] = {"machine": _describe(device)}
    measurements = toys(clock) if options.smoke else parts(clock)
    chosen = options.part or list(measurements)
    if unknown := set(chosen) - set(measurements):
        parser.error(f"--part {sorted(unknown)[0]}: the parts are {', '.join(measurements)}")
    chosen_parts = {name: measurements[name] for name in chosen}
    if failed := measure(chosen_parts, budget, report, options.json):
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
