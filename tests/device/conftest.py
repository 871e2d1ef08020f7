"""What tests of graphs on a device watch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import glimprouter as gr
from glimprouter import kv
from glimprouter.hf.attention import layers
from glimprouter.hf.engine import kept_pool
from glimprouter.hf.engine import paged as engine
from glimprouter.hf.graphs import sizes
from recorded_graphs import CountingRecorder


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[CountingRecorder]:
    """Of the models that the test makes; tables and pages are so small that sizes change often."""
    made: list[CountingRecorder] = []

    def make(device: str) -> CountingRecorder:
        made.append(CountingRecorder(device))
        return made[-1]

    monkeypatch.setattr(kept_pool, "recorder_for", make)
    monkeypatch.setattr(sizes, "_FEWEST_PAGES", 1)
    monkeypatch.setattr(layers, "PAGE_SIZE", 16)
    return made


@pytest.fixture
def eager_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each pass that was computed by the models' own code, without a graph."""
    seen: list[int] = []
    own = engine.paged_forward

    def counted(model: Any, pool: Any, batch: gr.RaggedBatch, *arguments: Any) -> torch.Tensor:
        seen.append(len(batch.ids))
        return own(model, pool, batch, *arguments)

    monkeypatch.setattr(engine, "paged_forward", counted)
    return seen


@pytest.fixture(params=["direct", "staged"])
def loads(request: pytest.FixtureRequest) -> Iterator[str]:
    """How attention brings keys and values to a processor, in turns."""
    before = kv.set_attention_loads(request.param)
    yield request.param
    kv.set_attention_loads(before)
