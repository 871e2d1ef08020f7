"""The large model reads steps that the small one has written, before a policy judges them.

A pass has all sequences whose step ended in one pass of the small model. What it reads lies behind
the tokens that have been told: the end of the step, and the question. The question is taken back at
once; a step that stays is in the large model's memory then, and is not read again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from glimprouter.hf.pair.asides import EncodedAside
from glimprouter.hf.pair.locks import exclusive
from glimprouter.hf.run.said import Said
from glimprouter.hf.run.sequences import RunSequences
from glimprouter.kv import OutOfPages
from glimprouter.policies import AsideReading

_ROWS = 256  # of logits that are float32 at a time


class AskedStep(NamedTuple):
    """A step that is to be read.

    Attributes:
        said: Of its sequence; the reading is put there.
        written: Tokens at its end that the record has not been told of.
        start: Tokens generated before it.
    """

    said: Said
    written: list[int]
    start: int


class Asides:
    """Asks the large model about steps, as many as there is memory for at a time."""

    def __init__(self, sequences: RunSequences, aside: EncodedAside) -> None:
        """Nothing is asked yet.

        Args:
            sequences: Of the run.
            aside: What is asked.
        """
        self._sequences = sequences
        self._aside = aside

    def read(self, asked: Sequence[AskedStep]) -> None:
        """Puts a reading, or a fault, to each of these; it stays after an exception."""
        left = list(asked)
        with exclusive(*self._sequences.pair.models):
            while left:
                try:
                    self._read_some(left)
                except OutOfPages as error:
                    self._make_room(left, error)
                left = [own for own in left if own.said.reading is None and own.said.fault is None]

    def _read_some(self, left: Sequence[AskedStep]) -> None:
        """Those in memory; or else the first one.

        Raises:
            OutOfPages: For all of them there is no room.
        """
        sequences, engine = self._sequences, self._sequences.engine
        here = [own for own in left if sequences.is_active(own.said.record)]
        if not here:
            sequences.bring_back(left[0].said.record)
            here = [left[0]]
        rows = {}
        try:
            for own in here:
                record = own.said.record
                first = own.start if self._aside.tokens else None
                rows[record.index] = engine.begin_aside(
                    record, own.written, self._aside.question, first
                )
            fitting = [own for own in here if not self._is_too_long(own)]
            by_index = {own.said.record.index: own for own in fitting}
            for group in list(engine.groups("large", [own.said.record for own in fitting])):
                started = time.perf_counter()
                logits = engine.forward("large", group)
                together = [by_index[record.index] for record in group]
                counts = [rows[record.index] for record in group]
                self._take(together, torch.split(logits, counts), started)
        finally:
            for own in here:
                if own.said.reading is None:
                    engine.end_aside(own.said.record)

    def _is_too_long(self, own: AskedStep) -> bool:
        """Whether step and question reach beyond the large model's context: a fault."""
        record, context = own.said.record, self._sequences.pair.contexts["large"]
        length = self._sequences.engine.length("large", record)
        if length > context:
            own.said.fault = (
                f"sequence {record.index}: the {len(record.generated) + len(own.written)} tokens"
                f" generated, with the prompt and the question of the policy, are {length} tokens"
                f" of the large model, whose context is {context}; lower max_think_tokens"
            )
        return length > context

    def _take(
        self, together: Sequence[AskedStep], logits: Sequence[torch.Tensor], started: float
    ) -> None:
        """What a pass has said of steps, in order."""
        readings = [self._reading(*each) for each in zip(together, logits, strict=True)]
        seconds = (time.perf_counter() - started) / len(together)
        for own, reading in zip(together, readings, strict=True):
            record, engine = own.said.record, self._sequences.engine
            record.num_asides += 1
            record.num_aside_tokens += engine.end_aside(record)
            # What is read again after a rewind: the prompt's last token, and the step's.
            computed = engine.computed("large", record)
            for place in (len(record.prompt.large), computed):
                if record.passes["large"][-1] < place - 1:
                    record.note_start("large", place - 1)
            own.said.seconds += seconds
            if reading is None:
                own.said.invalid = True
                own.said.fault = (
                    f"sequence {record.index}: the large model gave logits with a fault behind a"
                    f" step that a policy asks about, after {len(record.generated)} tokens"
                )
            else:
                own.said.reading = reading

    def _reading(self, own: AskedStep, logits: torch.Tensor) -> AsideReading | None:
        """What the logits of one sequence say; None where they have a fault."""
        size = self._aside.vocab_size
        last = logits[-1, :size].float().log_softmax(-1)
        if last.isnan().any():  # of NaN, of +inf, and of -inf alone
            return None
        answers = last[list(self._aside.answers)].tolist() if self._aside.answers else []
        if not self._aside.tokens:
            return AsideReading(tuple(answers))
        record = own.said.record
        ids = torch.tensor([*record.generated[own.start :], *own.written], device=logits.device)
        logprobs: list[float] = []
        for rows, wanted in zip(
            torch.split(logits[: len(ids)], _ROWS), torch.split(ids, _ROWS), strict=True
        ):
            values = rows[:, :size].float().log_softmax(-1)
            if values.isnan().any():
                return None
            logprobs += values.gather(1, wanted[:, None])[:, 0].tolist()
        return AsideReading(tuple(answers), tuple(logprobs))

    def _make_room(self, left: Sequence[AskedStep], error: OutOfPages) -> None:
        """Drafts make room, then others; one that is alone ends."""
        sequences = self._sequences
        if sequences.drop_drafts():
            return
        here = (own for own in left if sequences.is_active(own.said.record))
        first = next(here, None)
        if first is None:
            raise error
        if sequences.num_active > 1:
            sequences.preempt_youngest(first.said.record)
        else:
            first.said.fault = f"sequence {first.said.record.index}: {error}"
