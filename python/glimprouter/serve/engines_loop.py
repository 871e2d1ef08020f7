"""A run on two engines, in an event loop of its own: sequences come and go at any time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glimprouter.serve.errors import Failure, without_numbers
from glimprouter.serve.jobs import ACCEPTED, FAILED, STOPPED, STOPS, Delivery, Job
from glimprouter.serve.saving import save_sequence, write_saved

if TYPE_CHECKING:
    from pathlib import Path

    from glimprouter.hf import Event, RunUsage
    from glimprouter.vllm import EngineRun, RoutedEngines

_log = logging.getLogger("glimprouter.serve")
_SECONDS_TO_PROBE = 5.0  # between two questions whether the engines answer


class EnginesLoop:
    """Drives :class:`glimprouter.vllm.RoutedEngines` in the thread of its event loop.

    Attributes:
        usage: What the run held when something last happened.
        alive: Whether sequences are written; false once something went wrong that nobody expected.
    """

    def __init__(
        self,
        model: RoutedEngines,
        deliver: Callable[[list[Delivery]], None],
        save_dir: Path | None = None,
    ) -> None:
        """Not started yet.

        Args:
            model: The engines; those of one server alone.
            deliver: Takes what happened, in that thread: tickets with events, in order.
            save_dir: Where sequences are saved when it stops early, or an engine stays away.
        """
        self.alive = True
        self.usage: RunUsage | None = None
        self._model = model
        self._deliver = deliver
        self._save_dir = save_dir
        self._jobs: dict[int, Job] = {}  # by ticket
        self._tickets: dict[int, int] = {}  # by the sequence's index
        self._wake = asyncio.Event()  # where there was nothing to write
        self._stops = False
        self._ended: Failure | None = None  # what sequences are told once all is over
        self._ending = threading.Lock()
        self._run: EngineRun
        self._working: concurrent.futures.Future[None]

    @property
    def unavailable(self) -> str | None:
        """Why no sequence is taken now; None where it is."""
        if not self.alive:
            return "the engine has stopped"
        for name, seconds in self._model.away.items():
            if seconds >= self._model.patience:
                return _away(name)
        return None

    def health(self) -> dict[str, Any]:
        """Of each engine, for ``/health``."""
        away = self._model.away
        return {
            "engines": {
                name: f"does not answer for {away[name]:.0f} s" if name in away else "ok"
                for name in self._model.usage
            }
        }

    def start(self) -> None:
        """Returns once sequences may come.

        Raises:
            EngineLost: An engine does not answer.
            EngineRefused: One that cannot serve.
        """
        try:
            self._run = self._model.stream([])
        except BaseException:
            self.alive = False
            raise
        self.usage = self._run.usage()
        self._working = self._model.thread.start(self._work())

    def submit(self, ticket: int, job: Job) -> None:
        """Adds a sequence; what happens to it is delivered with this ticket, its end last."""
        with self._ending:
            if self._ended is None:
                self._model.thread.post(functools.partial(self._add, ticket, job))
                return
        self._deliver([(ticket, self._ended)])

    def cancel(self, ticket: int) -> None:
        """Ends a sequence, if it has not ended, and its request; its end is delivered, too."""
        self._model.thread.post(functools.partial(self._cancel, ticket))

    def stop(self) -> None:
        """Ends, or saves, all sequences now."""
        self._model.thread.post(self._stop)

    def join(self, seconds: float | None = None) -> None:
        """Waits for the end."""
        concurrent.futures.wait([self._working], seconds)

    async def _work(self) -> None:
        probing = asyncio.ensure_future(self._probe())
        end = STOPS
        try:
            await self._follow()
        except BaseException:
            _log.exception("the engine has stopped")
            end = STOPPED
        finally:
            self.alive = False
            probing.cancel()
            self._refuse_all(end)
            await self._run.aclose()

    async def _follow(self) -> None:
        while not self._stops:
            try:
                events = await self._run.astep()
            except Exception:
                _log.exception("the run failed")
                self._end_all(FAILED)
                self._run = await self._model.astream([])
                continue
            if events:
                self._tell(events)
            else:
                await self._wake.wait()
                self._wake.clear()

    async def _probe(self) -> None:
        """An engine that nobody asks for tokens may be away as well, and come back."""
        while True:
            await asyncio.sleep(_SECONDS_TO_PROBE)
            try:
                await self._model.aprobe()
            except Exception:
                _log.exception("the engines could not be asked")

    def _add(self, ticket: int, job: Job) -> None:
        if self._ended is not None:
            self._deliver([(ticket, self._ended)])
            return
        try:
            index = self._run.add(
                job.prompt, job.seed, substream=job.substream, **dict(job.overrides)
            )
        except (TypeError, ValueError) as error:
            self._deliver([(ticket, Failure(without_numbers(str(error)), 400))])
            return
        except RuntimeError:  # the run has failed, and there is no other one yet
            self._deliver([(ticket, FAILED)])
            return
        self._tickets[index] = ticket
        self._jobs[ticket] = job
        self.usage = self._run.usage()
        self._deliver([(ticket, ACCEPTED)])
        self._wake.set()

    def _cancel(self, ticket: int) -> None:
        index = next((index for index, own in self._tickets.items() if own == ticket), None)
        if index is not None and index in self._run.sequences:
            self._run.cancel(index)

    def _stop(self) -> None:
        self._stops = True
        self._end_all(STOPS)
        self._wake.set()

    def _tell(self, events: list[Event]) -> None:
        told: list[Delivery] = []
        for event in events:
            ticket = self._tickets.get(event.sequence)
            if event.kind == "done":
                if ticket is not None:
                    told.append((ticket, self._missed(event.sequence, ticket) or event))
                    del self._tickets[event.sequence], self._jobs[ticket]
                self._run.release(event.sequence)
            elif ticket is not None:
                told.append((ticket, event))
        self.usage = self._run.usage()
        if told:
            self._deliver(told)

    def _missed(self, index: int, ticket: int) -> Failure | None:
        """What the client is told where an engine stayed away, or would not; None for another end.

        It is not told where that engine is.
        """
        if index not in self._run.missed:
            return None
        model, refused = self._run.missed[index], index in self._run.refused
        message = f"{_away(model)}; send the request again later"
        if refused:
            message = f"the {model} model's engine refused the request"
        _log.warning("%s", self._run.trace(index).error)
        name = self._jobs[ticket].name
        if self._save_dir and write_saved(self._run.saved[index], name, self._save_dir):
            message = f"{message}; what there is was saved as {name}"
        return Failure(message, 502 if refused else 503)

    def _end_all(self, failure: Failure) -> None:
        """Ends all sequences; those that have begun are saved first where the server stops."""
        for index, ticket in list(self._tickets.items()):
            own = failure
            if self._stops and self._save_dir is not None:
                name = self._jobs[ticket].name
                own = save_sequence(self._run, index, name, self._save_dir) or failure
            del self._tickets[index], self._jobs[ticket]
            if index in self._run.sequences:
                self._run.cancel(index)
            self._deliver([(ticket, own)])

    def _refuse_all(self, failure: Failure) -> None:
        """Nobody waits for ever: neither who is here, nor who comes later."""
        with self._ending:
            self._ended = failure
        refused = list(self._jobs)
        self._jobs.clear()
        self._tickets.clear()
        self._deliver([(ticket, failure) for ticket in refused])


def _away(name: str) -> str:
    return f"the {name} model's engine does not answer"
