"""A run whose device is lost: what its records know is all that there is, and it stays."""

from __future__ import annotations

from typing import Any

from glimprouter._C import DeviceLost
from glimprouter.hf.pair.lost import raise_if_lost
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.run.loop import Loop
from glimprouter.hf.run.sequences import RunSequences
from glimprouter.hf.sequence.events import Event, Result, TokenCounts
from glimprouter.hf.sequence.record import SequenceRecord


class LostDevice:
    """Whether a device of a run is lost, and what the run can do then: nothing asks the device."""

    def __init__(self, loop: Loop) -> None:
        """Of a run with this loop; nothing is lost yet."""
        self._loop = loop
        self._error: DeviceLost | None = None

    def __bool__(self) -> bool:
        """Whether one is."""
        return self._error is not None

    def check(self) -> None:
        """Before all that asks the device.

        Raises:
            DeviceLost: One is lost: always with the same words.
        """
        if self._error is not None:
            raise DeviceLost(str(self._error))

    def note(self, error: Exception) -> None:
        """What a call of the run has raised.

        Raises:
            DeviceLost: It means that a device is lost.
        """
        try:
            raise_if_lost(error, _devices(self._loop.sequences))
        except DeviceLost as lost:
            if self._error is None:
                self._error = lost
            raise

    def cancel(self, record: SequenceRecord) -> Result:
        """Ends a sequence as far as its record goes; what it holds on the device stays there.

        A sequence that is not in memory has no counts, and no ids where vocabularies differ.

        Raises:
            ValueError: It has ended.
        """
        if record.done:
            raise ValueError(f"sequence {record.index} has ended")
        sequences, unread = self._loop.sequences, self._loop.unread
        waited = sequences.withdraw(record)
        unread.extend(record.finish("cancelled"))
        counts = {name: TokenCounts(0, 0, 0) for name in MODELS}
        token_ids = list(record.generated) if sequences.pair.translation is None else []
        if not waited and sequences.is_active(record):
            sequences.engine.drop_drafts(record)
            counts = sequences.engine.counts(record)
            token_ids = sequences.engine.token_ids("large", record)
        result = record.result(token_ids, counts)
        unread.append(Event(record.index, "done", result=result))
        return result


def _devices(sequences: RunSequences) -> str:
    """Where a run computes: torch does not say which of several devices it was."""
    homes: list[Any] = [sequences.router.device, *(model.device for model in sequences.pair.models)]
    return " or ".join(dict.fromkeys(str(home) for home in homes if str(home) != "cpu")) or "cpu"
