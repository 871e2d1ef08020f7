"""The measurement of decode layers runs, on a toy and the CPU: what it says there means nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
SCRIPT = """
import json, torch, layers
from clock import Clock
print(json.dumps(layers.run(Clock(torch.device("cpu"), 2, 1), ("toy",), (1, 2))))
"""


def test_every_operation_of_a_layer_is_measured() -> None:
    command = [sys.executable, "-c", SCRIPT]
    finished = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(finished.stdout)["rows"]
    names = ["norm", "rotation", "activation", "q_k_v", "o", "gate_up", "down"]
    assert [row["operation"] for row in rows] == 2 * names
    assert [row["bytes"] for row in rows[3:7]] == [
        2 * 64 * (128 + 64 + 64),
        2 * 128 * 64,
        2 * 64 * 256,
        2 * 128 * 64,
    ]
    assert all(row["torch_us"] > 0 for row in rows)
