"""Bad input: one clear exception each, nothing changed by it, nothing lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bad_input
import glimprouter as gr
from bad_engine_calls import PAIRS, PROMPTS, TRACES
from bad_input import VOCABULARY, World
from bad_router_calls import DRAFTS, LOGITS, OPENED, ROUTER, ROWS

NO_ROWS = np.zeros((0, VOCABULARY), np.float32)
TABLES = (LOGITS, ROWS, DRAFTS, ROUTER, OPENED, PROMPTS, PAIRS, TRACES)
CASES = {name: case for table in TABLES for name, case in table.items()}
assert len(CASES) == sum(map(len, TABLES)), "two cases share a name"


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, tmp_path: Path) -> None:
    """The exception says what is wrong, and everything goes on as if the call had not been made."""
    case = CASES[name]
    world = World(tmp_path)
    before = world.snapshot()
    with pytest.raises(case.error, match=f"(?s){case.message}") as caught:
        case.call(world)
    assert caught.type is case.error
    assert world.snapshot() == before
    world.go_on()
    model, expected = bad_input.shared_pair()
    assert model.generate(["Hi"])[0].token_ids == expected


def test_an_empty_batch_is_legal(tmp_path: Path) -> None:
    world = World(tmp_path)
    before = world.snapshot()
    assert gr.glimpse(NO_ROWS).entropy.shape == (0,)
    assert gr.sample(torch.zeros(0, VOCABULARY)).shape == (0,)
    for model in ("small", "large"):
        world.router.step(model, NO_ROWS, [], world.outputs)
    world.router.decide("large", [], world.router.outputs(0))
    assert world.snapshot() == before
    assert bad_input.shared_pair()[0].generate([]) == []


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import glimprouter

try:
    import glimprouter.hf
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.parametrize("blocked", ["torch", "transformers"])
def test_a_missing_extra(blocked: str) -> None:
    """The core imports without it; the engine says what to install."""
    code = BLOCKED.format(blocked=blocked)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == (
        f"glimprouter.hf needs {blocked}; install it with: pip install 'glimprouter[hf]'"
    )
