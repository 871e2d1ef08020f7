"""What a server tells Prometheus of engines elsewhere; of their memory they tell themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glimprouter.serve.metrics import ServerMetrics

if TYPE_CHECKING:
    from glimprouter.serve.pair import ServedPair
    from glimprouter.vllm import RoutedEngines

_COUNTERS = {
    "requests": "Requests that an engine has answered.",
    "retries": "Requests that were sent again.",
    "prompt_tokens": "Tokens of the prompts of these requests.",
    "cached_tokens": "Tokens among these that the engine's prefix cache had.",
    "recomputed_tokens": "Tokens that it had computed for a sequence, and computed again.",
    "dropped_tokens": "Tokens behind an end that only this server knew.",
}


class EngineCollector(Collector):
    """Counts of both engines, read when they are asked for."""

    def __init__(self, model: RoutedEngines) -> None:
        """Of a pair."""
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """All of them, by model."""
        usage, away = self._model.usage, self._model.away
        for field, what in _COUNTERS.items():
            counter = CounterMetricFamily(f"glimprouter_engine_{field}", what, labels=["model"])
            for name, own in usage.items():
                counter.add_metric([name], getattr(own, field))
            yield counter
        up = GaugeMetricFamily(
            "glimprouter_engine_up", "Whether an engine answers.", labels=["model"]
        )
        for name in usage:
            up.add_metric([name], float(name not in away))
        yield up


def metrics_of(model: ServedPair) -> ServerMetrics:
    """Counters of a server of this pair."""
    from glimprouter.hf import RoutedModel

    if isinstance(model, RoutedModel):
        return ServerMetrics()
    metrics = ServerMetrics(local=False)
    metrics.registry.register(EngineCollector(model))
    return metrics
