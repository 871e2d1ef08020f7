"""A tensor whose memory is not its values is resolved or refused, by every entry that takes one."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import tensor_kinds

# Their memory holds their values: they give what a plain tensor gives.
AS_PLAIN = {"plain", "parameter", "inference", "plain subclass", "numpy", "numpy subclass", "jax"}
NAMES = [*tensor_kinds.KINDS, *tensor_kinds.INSIDE]
# What a message has to say beside the name of the argument.
SAYS = {
    "negative bit": "call .resolve_neg() first",
    "fake": "FakeTensor, a tensor subclass with operations of its own",
    "distributed": "DTensor, a tensor subclass with operations of its own",
    "functions of its own": "pass a plain torch.Tensor",
    "freed storage": "its storage was freed",
    "shrunk storage": "which was resized to 8 bytes",
    "functional": "has elements, but no memory for them",
    "zero": "has elements, but no memory for them",
    "masked array": "whose mask would be lost; pass .filled",
    "array with ufuncs of its own": "numpy.asarray",
}


@pytest.fixture(scope="module")
def report() -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, tensor_kinds.__file__], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", NAMES)
def test_every_kind_is_resolved_or_refused(report: dict[str, dict[str, Any]], kind: str) -> None:
    assert "died" not in report[kind], f"the process died: {report[kind]}"
    assert set(report[kind]) == set(tensor_kinds.entries_of(kind))
    for entry, (outcome, *details) in report[kind].items():
        if kind in AS_PLAIN:
            assert outcome == "same", f"{entry}: {details}"
            continue
        assert outcome == "refused", f"{entry}: {outcome} {details}"
        message = details[1]
        assert "\n" not in message, f"{entry}: {message}"
        assert SAYS.get(kind, "") in message, f"{entry}: {message}"


def test_arrays_of_jax(report: dict[str, dict[str, Any]]) -> None:
    """They are read-only, deleted ones and tracers hold nothing."""
    for entry, (outcome, *details) in report["jax"].items():
        written = entry.endswith("out") or entry.startswith("gather")
        assert outcome == ("refused" if written else "same"), f"{entry}: {details}"
    for kind in ("deleted jax", "jax tracer"):
        assert {outcome for outcome, *_ in report[kind].values()} == {"refused"}, report[kind]
