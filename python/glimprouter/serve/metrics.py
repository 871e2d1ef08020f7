"""What a server tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from glimprouter.serve.errors import Failure

if TYPE_CHECKING:
    from glimprouter.hf import Event, Result, RunUsage

_MODELS = ("small", "large")
_NATS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class DraftMetrics:
    """Drafts, which only models in this process can verify."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Everything is 0."""
        self._compared = Counter(
            "glimprouter_drafts_compared", "Drafts that were verified.", registry=registry
        )
        self._accepted = Counter(
            "glimprouter_drafts_accepted", "Drafts among these that held.", registry=registry
        )
        self._counts = [0, 0]  # accepted, compared
        Gauge(
            "glimprouter_draft_accept_rate", "Share of drafts that held.", registry=registry
        ).set_function(self._rate)

    def _rate(self) -> float:
        accepted, compared = self._counts
        return accepted / compared if compared else 0.0

    def note(self, result: Result) -> None:
        """A sequence that has ended."""
        compared = sum(counts.compared for counts in result.counts.values())
        accepted = sum(counts.accepted for counts in result.counts.values())
        self._compared.inc(compared)
        self._accepted.inc(accepted)
        self._counts[0] += accepted
        self._counts[1] += compared


class ServerMetrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, *, local: bool = True) -> None:
        """Everything is 0.

        Args:
            local: Whether the models are in this process: then there are drafts, and pages.
        """
        self.registry = registry = CollectorRegistry()
        self._tokens = Counter(
            "glimprouter_tokens", "Tokens written.", ["model"], registry=registry
        )
        self._steps = Counter("glimprouter_steps", "Steps written.", ["model"], registry=registry)
        self._handoffs = Counter(
            "glimprouter_handoffs", "Changes of the writer within a sequence.", registry=registry
        )
        self._entropy = Histogram(
            "glimprouter_glimpse_entropy_nats",
            "Entropy of glimpses.",
            buckets=_NATS,
            registry=registry,
        )
        self._ends = Counter(
            "glimprouter_sequences", "Sequences that have ended.", ["reason"], registry=registry
        )
        self._answers = Counter(
            "glimprouter_http_answers", "Answers.", ["endpoint", "status"], registry=registry
        )
        self._seconds = Histogram(
            "glimprouter_request_seconds",
            "From a request to the end of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._writers: dict[int, str] = {}  # last one of each sequence in flight
        self._share = Gauge(
            "glimprouter_large_token_share", "Share of the large model.", registry=registry
        )
        self._drafts = DraftMetrics(registry) if local else None
        self._local = local
        self.totals = dict.fromkeys(_MODELS, 0)
        for name in _MODELS:  # which are there from the start, as 0
            self._tokens.labels(name)
            self._steps.labels(name)

    def watch(self, usage: Callable[[], RunUsage | None], in_flight: Callable[[], int]) -> None:
        """Gauges that are read when they are asked for.

        Args:
            usage: What the run holds.
            in_flight: Sequences that wait or run.
        """

        def gauge(name: str, what: str, read: Callable[[RunUsage], float]) -> None:
            own = Gauge(name, what, registry=self.registry)

            def value() -> float:
                held = usage()
                return 0.0 if held is None else read(held)

            own.set_function(value)

        def waiting() -> float:
            held = usage()
            begun = 0 if held is None else held.running + held.preempted
            return max(0, in_flight() - begun)

        Gauge(
            "glimprouter_sequences_waiting",
            "Sequences that wait for a row.",
            registry=self.registry,
        ).set_function(waiting)
        gauge("glimprouter_rows", "Sequences that may be in flight.", lambda u: u.rows)
        gauge("glimprouter_rows_used", "Rows in use.", lambda u: u.running + u.preempted)
        gauge("glimprouter_sequences_running", "Sequences in memory.", lambda u: u.running)
        if not self._local:
            return
        gauge("glimprouter_sequences_preempted", "Out of memory.", lambda u: u.preempted)
        for name, what, read in (
            ("glimprouter_page_bytes", "Size of the arena.", lambda m: m.bytes),
            ("glimprouter_page_bytes_used", "Of it in use.", lambda m: m.bytes_used),
        ):
            gauge(
                name,
                what,
                lambda u, read=read: (u.memory and read(u.memory)) or 0,  # type: ignore[misc]
            )

    def note(self, ticket: int, event: Event | Failure) -> None:
        """Something that happened to a sequence."""
        if isinstance(event, Failure):
            self._ends.labels("failed").inc()
            self._writers.pop(ticket, None)
            return
        if event.kind == "route" and event.entropy is not None:
            self._entropy.observe(event.entropy)
        elif event.kind == "token" and event.token_id is not None and event.model is not None:
            self._tokens.labels(event.model).inc()
            self.totals[event.model] += 1
            before = self._writers.get(ticket)
            self._writers[ticket] = event.model
            if before is not None and before != event.model:
                self._handoffs.inc()
        elif event.kind == "step" and event.step is not None:
            self._steps.labels(event.step.model).inc()
        elif event.kind == "done" and event.result is not None:
            self._writers.pop(ticket, None)
            self._note_result(event.result)

    def _note_result(self, result: Result) -> None:
        self._ends.labels(result.trace.end_reason).inc()
        if self._drafts is not None:
            self._drafts.note(result)

    def note_answer(self, endpoint: str, status: int, seconds: float) -> None:
        """An answer that has ended."""
        self._answers.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        total = sum(self.totals.values())
        self._share.set(self.totals["large"] / total if total else 0.0)
        return generate_latest(self.registry)
