"""The embedded pair behind engines that play vLLM, for servers in front of them."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from functools import cache
from typing import Any

import glimprouter as gr
from glimprouter.hf import Result
from glimprouter.vllm import RoutedEngines
from glimprouter.vllm.engines.base import EngineRequest, Piece
from hf_pairs import trained_pair
from played_engines import PlayedEngine

CONFIG = gr.RouterConfig(
    threshold=0.5, temperature=0.0, top_p=1.0, max_think_tokens=80, max_answer_tokens=12
)
LONG = {"max_think_tokens": 800, "route": "large", "repetition_guard": False}


class WatchedEngine(PlayedEngine):
    """Counts the requests that are under way."""

    under_way = 0

    async def write(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        self.under_way += 1
        try:
            async for piece in super().write(request):
                yield piece
        finally:
            self.under_way -= 1


def engines(config: gr.RouterConfig = CONFIG, **options: Any) -> RoutedEngines:
    """The embedded pair on two engines."""
    pair = trained_pair()
    made = [WatchedEngine(model, pair.tokenizer) for model in (pair.small, pair.large)]
    options = {"max_sequences": 8, "on_invalid": "end", "patience": 0.3, **options}
    return RoutedEngines(*made, pair.tokenizer, config, **options)


@cache
def alone(prompt: str) -> Result:
    """What a RoutedModel of the same weights makes of it, greedy."""
    options = dataclasses.asdict(CONFIG)
    chat = [{"role": "user", "content": prompt}]
    return trained_pair().routed(**options).generate([chat])[0]


def played(model: RoutedEngines, name: str) -> WatchedEngine:
    engine: Any = model._engines[name]._engine
    return engine


def done(run: Any) -> list[Result]:
    """Results of a run, in the order of their ends."""
    return [event.result for event in run if event.result is not None]
