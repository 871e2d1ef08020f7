"""The thread that owns a run: sequences come and go between two of its passes."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glimprouter._C import DeviceLost
from glimprouter.serve.errors import Failure, without_numbers
from glimprouter.serve.jobs import ACCEPTED, FAILED, STOPPED, STOPS, Delivery, Job
from glimprouter.serve.saving import save_sequence

if TYPE_CHECKING:
    from pathlib import Path

    from glimprouter.hf import Event, RoutedModel, Run, RunUsage

_log = logging.getLogger("glimprouter.serve")
_FAILURES = 3  # of passes in a row, before the sequences in flight are given up


class EngineThread:
    """Computes while there are sequences, and sleeps while there are none.

    Attributes:
        usage: What the run held after its last pass.
        alive: Whether sequences are written; false once something went wrong that nobody expected.
    """

    def __init__(
        self,
        model: RoutedModel,
        deliver: Callable[[list[Delivery]], None],
        save_dir: Path | None = None,
    ) -> None:
        """Not started yet.

        Args:
            model: The pair, for this thread alone.
            deliver: Takes what happened, in this thread: tickets with events, in order.
            save_dir: Where sequences are saved when it stops early.
        """
        self.alive = True
        self.usage: RunUsage | None = None
        self._model = model
        self._deliver = deliver
        self._save_dir = save_dir
        self._commands: queue.SimpleQueue[tuple[str, int, Job | None]] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}  # by ticket
        self._tickets: dict[int, int] = {}  # by the sequence's index
        self._ready = threading.Event()
        self._refusal: BaseException | None = None
        self._stops = False
        self._ended: Failure | None = None  # what sequences are told once the thread has ended
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="glimprouter-engine", daemon=True)

    @property
    def unavailable(self) -> str | None:
        """Why no sequence is taken now; None where it is."""
        return None if self.alive else "the engine has stopped"

    def health(self) -> dict[str, Any]:
        """What else ``/health`` says: nothing."""
        return {}

    def start(self) -> None:
        """Returns once the run has its memory.

        Raises:
            ValueError: There is not enough.
        """
        self._thread.start()
        self._ready.wait()
        if self._refusal is not None:
            raise self._refusal

    def submit(self, ticket: int, job: Job) -> None:
        """Adds a sequence; what happens to it is delivered with this ticket, its end last."""
        with self._ending:
            if self._ended is None:
                self._commands.put(("add", ticket, job))
                return
        self._deliver([(ticket, self._ended)])

    def cancel(self, ticket: int) -> None:
        """Ends a sequence, if it has not ended; its end is delivered, too."""
        self._commands.put(("cancel", ticket, None))

    def stop(self) -> None:
        """Ends, or saves, all sequences now, and the thread."""
        self._commands.put(("stop", 0, None))

    def join(self, seconds: float | None = None) -> None:
        """Waits for the end of the thread."""
        self._thread.join(seconds)

    def _work(self) -> None:
        try:
            run = self._model.stream([])
            self.usage = run.usage()
        except BaseException as error:
            self._refusal = error
            self.alive = False
            return
        finally:
            self._ready.set()
        end = STOPS
        try:
            self._loop(run)
        except BaseException:
            _log.exception("the engine has stopped")
            end = STOPPED
        finally:
            self.alive = False
            self._refuse_all(end)

    def _loop(self, run: Run) -> None:
        failures = 0
        while True:
            self._obey(run)
            if self._stops:
                return
            try:
                self._tell(run, run.step())
                failures = 0
            except DeviceLost:
                raise  # no later pass would succeed: whoever watches starts another process
            except Exception:
                _log.exception("a pass failed")
                failures += 1
            if failures == _FAILURES:
                self._end_all(run, FAILED)
                failures = 0
            self.usage = run.usage()

    def _obey(self, run: Run) -> None:
        """All commands that are there; waits for one where there is nothing to compute."""
        while True:
            try:
                what, ticket, job = self._commands.get(block=not self._tickets)
            except queue.Empty:
                return
            if what == "add" and job is not None:
                self._add(run, ticket, job)
            elif what == "cancel":
                self._cancel(run, ticket)
            else:
                self._stops = True
                self._end_all(run, STOPS)
                return

    def _add(self, run: Run, ticket: int, job: Job) -> None:
        try:
            index = run.add(job.prompt, job.seed, substream=job.substream, **dict(job.overrides))
        except (TypeError, ValueError) as error:
            self._deliver([(ticket, Failure(without_numbers(str(error)), 400))])
            return
        self._tickets[index] = ticket
        self._jobs[ticket] = job
        self._deliver([(ticket, ACCEPTED)])

    def _cancel(self, run: Run, ticket: int) -> None:
        index = self._index(ticket)
        if index is not None and index in run.sequences:
            run.cancel(index)

    def _index(self, ticket: int) -> int | None:
        return next((index for index, own in self._tickets.items() if own == ticket), None)

    def _tell(self, run: Run, events: list[Event]) -> None:
        told: list[Delivery] = []
        for event in events:
            ticket = self._tickets.get(event.sequence)
            if ticket is not None:
                told.append((ticket, event))
            if event.kind == "done":
                run.release(event.sequence)
                if ticket is not None:
                    del self._tickets[event.sequence], self._jobs[ticket]
        if told:
            self._deliver(told)

    def _end_all(self, run: Run, failure: Failure) -> None:
        """Ends all sequences; those that have begun are saved first where the server stops."""
        for index, ticket in list(self._tickets.items()):
            own = failure
            if self._stops and self._save_dir is not None:
                own = save_sequence(run, index, self._jobs[ticket].name, self._save_dir) or failure
            del self._tickets[index], self._jobs[ticket]
            if index in run.sequences:
                run.cancel(index)
            self._deliver([(ticket, own)])
        self._tell(run, run.step())

    def _refuse_all(self, failure: Failure) -> None:
        """Nobody waits for ever: neither who is here, nor who comes later."""
        with self._ending:
            self._ended = failure
        refused = list(self._jobs)
        self._jobs.clear()
        self._tickets.clear()
        while not self._commands.empty():
            _, ticket, job = self._commands.get()
            if job is not None:
                refused.append(ticket)
        self._deliver([(ticket, failure) for ticket in refused])
