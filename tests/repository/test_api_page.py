"""Every public name is on the API page, which CI builds with strict links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import glimprouter
import glimprouter.calibration
import glimprouter.chains
import glimprouter.evaluation
import glimprouter.hf
import glimprouter.kv
import glimprouter.policies
import glimprouter.tasks
import glimprouter.torch
import glimprouter.trace
import glimprouter.vllm

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"\w+", PAGE))
MODULES = (
    glimprouter,
    glimprouter.calibration,
    glimprouter.chains,
    glimprouter.evaluation,
    glimprouter.hf,
    glimprouter.kv,
    glimprouter.policies,
    glimprouter.tasks,
    glimprouter.torch,
    glimprouter.trace,
    glimprouter.vllm,
)

NEEDS_MORE = {"GlimpGate"}  # it can be had in an engine of vLLM only


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_on_the_page(module: object) -> None:
    names: list[str] = module.__all__  # type: ignore[attr-defined]
    assert not sorted(set(names) - NAMED)
    for name in names:
        assert name in NEEDS_MORE or hasattr(module, name)
