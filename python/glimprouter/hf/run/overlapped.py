"""The loop of a pair on two devices: passes of both models at the same time.

A pass of the large model is computed by a thread of its own, and until it is over this thread goes
on with passes of the small model. They have nothing in common: the rows of the large model's pass
are in no other, each model has pages of its own, and router, tokens and tables belong to this
thread. Nothing is preempted, taken in or taken back meanwhile. When a call returns or raises, no
pass is under way.
"""

from __future__ import annotations

import contextvars
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from glimprouter.hf.engine.begun_pass import BegunPass
from glimprouter.hf.engine.choice import EngineChoice
from glimprouter.hf.engine.paged import PagedEngine
from glimprouter.hf.pair.devices import torch_device
from glimprouter.hf.pair.locks import lent
from glimprouter.hf.run.flight import Flight
from glimprouter.hf.run.loop import Loop
from glimprouter.hf.run.overlapped_turns import OverlappedTurns
from glimprouter.hf.run.passes import ModelPasses, PassReport, PlannedPass
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.kv import OutOfPages


def why_in_turn(
    models: Mapping[str, Any], choice: EngineChoice, devices: Mapping[str, str]
) -> str | None:
    """Why passes of models on two devices run one after the other; None where they overlap.

    Args:
        models: By name.
        choice: The engine that serves them.
        devices: Where their pages lie, by name.
    """
    small, large = models["small"], models["large"]
    if len(set(devices.values())) == 1:
        return "both models are on one device"
    if choice.name != "paged":
        return f"the engine {choice.name!r} computes one pass at a time"
    if "large" in choice.states:
        return "the large model keeps states beside keys and values"
    # A pass puts its attention and its layers on a model: another pass must not meet them there.
    shared = {id(module) for module in small.modules()} & {id(m) for m in large.modules()}
    if shared or small.config.get_text_config() is large.config.get_text_config():
        return "the models share modules or their configuration"
    return None


def overlaps(models: Mapping[str, Any], choice: EngineChoice, devices: Mapping[str, str]) -> bool:
    """Whether passes of both models run at once.

    Warns:
        RuntimeWarning: They are on two devices, and do not.
    """
    reason = why_in_turn(models, choice, devices)
    if reason is not None and len(set(devices.values())) > 1:
        warnings.warn(
            f"the models are on {dict(devices)}, but their passes run one after the other:"
            f" {reason}",
            RuntimeWarning,
            stacklevel=3,  # who constructs the RoutedModel
        )
    return reason is None


class ShortOfPages(Exception):
    """A pass of the small model has no room while the large one computes: nobody may make it."""


class OverlappedPasses(ModelPasses):
    """As its base; a pass of the large model calls back while it is computed.

    Attributes:
        flying: Sequences of that pass, by index.
    """

    def __init__(self, *arguments: Any, beside: Callable[[Flight], None], **named: Any) -> None:
        """Nothing is computed yet.

        Args:
            *arguments: Of the base.
            beside: A method that is called during a pass of the large model, and may compute passes
                of the small one over other sequences.
            **named: Of the base.
        """
        super().__init__(*arguments, **named)
        self.flying: frozenset[int] = frozenset()
        self._reads_only = False
        # The loop has this: one that kept the loop would keep its memory until the next collection.
        self._beside = weakref.WeakMethod(beside)
        self._seconds = 0.0  # of that pass alone
        self._thread = ThreadPoolExecutor(1, "glimprouter-large")

    def run(self, planned: PlannedPass) -> PassReport | None:
        """As the base; what the large model's pass takes is its own time."""
        report = super().run(planned)
        if report is not None and planned.model == "large":
            report = report._replace(seconds=self._seconds)
        return report

    def catch_up(self, name: str, record: SequenceRecord) -> None:
        """As the base, with nothing beside: the sequence may wait for the small model."""
        self._reads_only = True
        try:
            super().catch_up(name, record)
        finally:
            self._reads_only = False

    def _compute(self, name: str, records: list[SequenceRecord]) -> Any:
        if name == "small":
            try:
                return super()._compute(name, records)
            except OutOfPages as error:
                if self.flying:
                    raise ShortOfPages from error
                raise
        engine = self._sequences.engine
        assert isinstance(engine, PagedEngine)
        begun = engine.begin(name, records)
        try:
            logits = self._fly(begun)
        except BaseException:
            engine.end(begun, computed=False)
            raise
        engine.end(begun, computed=True)
        return logits

    def _fly(self, begun: BegunPass) -> torch.Tensor:
        models = self._sequences.pair.models
        large = models[1]
        flight = Flight(_settled(begun.compute, large, self._sequences.router.device))
        if begun.alone or self._reads_only or _has_modes(large.device):
            flight.run()
        else:
            self.flying = frozenset(record.index for record in begun.records)
            try:
                context = contextvars.copy_context()  # which hooks of the model may ask
                self._thread.submit(
                    context.run, _fly_elsewhere, flight, self._sequences.pair.models
                )
                beside = self._beside()
                assert beside is not None  # the loop that waits for this
                beside(flight)
                flight.logits()
            finally:
                try:
                    flight.end()
                finally:
                    self.flying = frozenset()
        self._seconds = flight.seconds
        return flight.logits()


def _fly_elsewhere(flight: Flight, models: Sequence[Any]) -> None:
    with lent(*models):
        flight.run()


def _has_modes(device: torch.device) -> bool:
    """Whether this thread computes otherwise than a fresh one would."""
    stacked = torch._C._len_torch_function_stack()  # also of torch.set_default_device
    return stacked > 0 or torch.is_autocast_enabled(device.type)


def _settled(
    compute: Callable[[], torch.Tensor], model: Any, router_device: str
) -> Callable[[], torch.Tensor]:
    """Gives logits where steps run, when they are there: a device is waited for.

    The streams of the calling thread are used, for what it does next comes behind.
    """
    home = torch_device(router_device)
    if model.device.type != "cuda":
        return lambda: compute().to(home)
    stream = torch.cuda.current_stream(model.device)

    def settled() -> torch.Tensor:
        with torch.cuda.stream(stream):
            logits = compute().to(home)
            stream.synchronize()
        return logits

    return settled


class OverlappedLoop(Loop):
    """As its base, with two models that compute at once."""

    _small_first = False  # it was short of pages, which only a turn of its own can make

    def _make_passes(self, *arguments: Any) -> OverlappedPasses:
        return OverlappedPasses(
            *arguments, worth_drafts=self._worth_first_drafts, beside=self._go_on_beside
        )

    def _turn(
        self, pending: Mapping[str, Sequence[SequenceRecord]]
    ) -> tuple[str | None, list[SequenceRecord]]:
        small, large = pending["small"], pending["large"]
        if self._small_first and small:
            self._small_first = False
            return "small", []
        rule = OverlappedTurns(self._drafted_turns)
        turn = rule.choose(len(small), [self._row(record) for record in large])
        if turn is None:
            return None, []
        return turn.model, [large[place] for place in turn.drafting]

    def _go_on_beside(self, flight: Flight) -> None:
        """Passes of the small model until the large one's is over, at least one: none starves."""
        while True:
            passes = self._beside()
            for planned in passes:  # all, or the last ones would never have their turn
                try:
                    report = self._computed.run(planned)
                except ShortOfPages:
                    self._small_first = True
                    return
                self._note(report)
                self.settle()
            if flight.over or not passes:
                return

    def _waiting_for_large(self) -> list[SequenceRecord]:
        """As the base, but those of its pass that is computed, and of those that are planned."""
        assert isinstance(self._computed, OverlappedPasses)
        busy = self._computed.flying.union(
            record.index for planned in self._passes for record in planned.records
        )
        return [r for r in super()._waiting_for_large() if r.index not in busy]

    def _beside(self) -> list[PlannedPass]:
        """The small model's next passes, over sequences that no pass of the large one has."""
        records, large = self.sequences.pending("small"), self._waiting_for_large()
        rule = OverlappedTurns(self._drafted_turns)
        turn = rule.beside(len(records), [self._row(record) for record in large])
        if turn is None:
            return []
        return list(self._cut("small", records, [large[place] for place in turn.drafting]))
