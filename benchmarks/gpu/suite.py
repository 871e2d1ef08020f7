"""Everything that needs a GPU, in one run: `python benchmarks/gpu/suite.py --json FILE`.

`--device cpu --smoke` runs the same code on toys, to find out whether it runs at all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import decode
import fused_op
import hybrid
import kv_pages
import routed_loop
import torch
from clock import Clock

from glimprouter.bench.harness import describe_machine
from glimprouter.files import write_atomically

ROOT = Path(__file__).parents[2]
LARGE_MEMORY = 90 << 30  # bytes that both models and their caches need side by side


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


def parts(clock: Clock, smoke: bool) -> dict[str, Callable[[], Any]]:
    """The measurements by name, in the order in which they run."""
    if smoke:
        return {
            "fused_op": lambda: fused_op.run(clock, 3000, (1, 4)),
            "kv_pages": lambda: kv_pages.run(clock, "toy", (64,), (1, 3)),
            "decode": lambda: decode.run(clock, ("toy",), 16, 6),
            "routed_loop": lambda: routed_loop.run(clock, "toy", "toy", 4),
            "hybrid": lambda: hybrid.run(clock, "toy", (1, 2)),
        }
    large = "32B" if torch.cuda.get_device_properties(0).total_memory > LARGE_MEMORY else "4B"
    return {
        "fused_op": lambda: fused_op.run(clock, 151_936),
        "kv_pages": lambda: kv_pages.run(clock, "4B", (512, 4096, 16_384), (1, 16, 64)),
        "decode": lambda: decode.run(clock, ("4B", "32B"), 512, 48),
        "routed_loop": lambda: routed_loop.run(clock, "4B", large, 16),
        "hybrid": lambda: hybrid.run(clock, "2B", (1, 16)),
        "decode_compiled": lambda: decode.run(clock, ("4B",), 512, 48, decode.COMPILED),
    }


def main() -> None:
    """Runs the suite; a part that fails is reported in the result, the others go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    parser.add_argument("--device", default="cuda:0", help="of torch (default: cuda:0)")
    parser.add_argument("--smoke", action="store_true", help="toys, a few seconds")
    parser.add_argument("--part", action="append", help="only this measurement; may be repeated")
    options = parser.parse_args()
    device = torch.device(options.device)
    clock = Clock(device, repeats=3 if options.smoke else 30, copies=2 if options.smoke else 20)
    report: dict[str, Any] = {"machine": _describe(device)}
    failed = []
    measurements = parts(clock, options.smoke)
    chosen = options.part or list(measurements)
    if unknown := set(chosen) - set(measurements):
        parser.error(f"--part {sorted(unknown)[0]}: the parts are {', '.join(measurements)}")
    for name in chosen:
        try:
            report[name] = measurements[name]()
        except (RuntimeError, ValueError, ImportError) as error:
            report[name] = {"failed": f"{type(error).__name__}: {error}"}
            failed.append(name)
        write_atomically(options.json, json.dumps(report, indent=2, default=str) + "\n")
        print(json.dumps({name: report[name]}, indent=1, default=str), flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
