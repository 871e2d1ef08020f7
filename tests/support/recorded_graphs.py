"""Pairs whose passes are graphs, and recorders that count."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

import glimprouter as gr
from device_pairs import pair_of
from glimprouter.hf import RoutedModel
from glimprouter.hf.graphs.pass_graphs import PassGraphs
from glimprouter.hf.graphs.recorders import Recording, recorder_for
from glimprouter.hf.pair.devices import torch_device


class CountingRecorder:
    """Records as the device's own does, and remembers how many rows were recorded."""

    def __init__(self, device: str) -> None:
        self.own = recorder_for(device)
        self.rows: list[int] = []
        self.replays = 0

    def rehearse(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        return self.own.rehearse(run)

    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        recording = self.own.record(run)
        self.rows.append(len(recording.result))

        def replay() -> None:
            self.replays += 1
            recording.replay()

        return recording._replace(replay=replay)


def routed(
    device: str,
    family: str = "qwen3",
    temperature: float = 0.0,
    models: tuple[Any, Any] | None = None,
    **options: Any,
) -> RoutedModel:
    pair, home = pair_of(family), torch_device(device)
    models = models or (pair.small, pair.large)
    if home != "cpu":
        models = copy.deepcopy(models)  # one model that is both stays one
        for model in models:
            model.to(home)
    config = gr.RouterConfig(
        threshold=pair.threshold,
        temperature=temperature,
        repetition_guard=False,
        max_step_tokens=6,
        max_think_tokens=24,
        max_answer_tokens=6,
    )
    options = {"engine": "paged", "drafts": 0, **options}
    return RoutedModel(*models, pair.tokenizer, config, device=device, **options)


def graphs_of(model: RoutedModel) -> dict[str, PassGraphs]:
    """Of the pools that are kept."""
    kept = model._engines._kept
    assert kept
    return {name: own for pool in kept.values() for name, own in pool._graphs.items()}
