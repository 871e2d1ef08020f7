"""Decode passes of a model as graphs: captured once for a size, replayed from then on.

One decode pass is some hundred launches from Python, which take many times as long as the kernels;
a replay is one. Sizes come in buckets: batches (up to the most of a pass) and tables (from
16 pages on) are padded to powers of two.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from glimprouter.hf.attention.paged import paged_forward
from glimprouter.hf.attention.stateful import stateful_forward
from glimprouter.hf.graphs.decode_pass import CompiledCall, DecodePass
from glimprouter.hf.graphs.recorders import Recorder, Recording
from glimprouter.hf.graphs.stateful_pass import StatefulDecodePass
from glimprouter.hf.state.sequences import SequenceStates, StateMove
from glimprouter.hf.state.slots import StateSlots
from glimprouter.kv import PagePool, RaggedBatch

# Passes of a bucket that are computed eagerly: libraries make their choices and buffers, and a size
# that is hardly asked for is never captured.
WARM_UP_PASSES = 2
_FEWEST_PAGES = 16  # of the tables: shorter sequences have the same graph


def padded_size(count: int, fewest: int = 1) -> int:
    """The next power of two, at least ``fewest``."""
    return max(fewest, 1 << (count - 1).bit_length())


@dataclass
class _Bucket:
    """One size of passes.

    Attributes:
        decode: Its buffers.
        computed: Passes that were not replays.
        recording: None until it is captured.
    """

    decode: DecodePass
    computed: int = 0
    recording: Recording | None = None


class DecodeGraphs:
    """The decode passes of one model over one pool.

    Hooks on the model see the first passes of a size only, not the replays.

    Attributes:
        refused: Why the model cannot be captured; None while it can.
        out_of_memory: Whether that was for want of memory, which another run may have.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        pool: PagePool,
        index: int,
        max_sequences: int,
        recorder: Recorder,
        compiled: CompiledCall | None = None,
        slots: StateSlots | None = None,
    ) -> None:
        """Captures nothing yet.

        Args:
            name: Name of the model, for messages.
            model: That is served on pages.
            pool: A pool of pages on the model's device.
            index: Index of the model's layout in the pool.
            max_sequences: The most of a pass.
            recorder: The recorder of the pool's device.
            compiled: The model's decode pass; None for the model's own code.
            slots: Of the model's states; None where it keeps keys and values only.
        """
        self.refused: str | None = None
        self.out_of_memory = False
        self._name = name
        self._model = model
        self._pool = pool
        self._index = index
        self._max_sequences = max_sequences
        self._recorder = recorder
        self._compiled = compiled
        self._slots = slots
        self._buckets: dict[tuple[int, int], _Bucket] = {}

    @property
    def captured(self) -> list[tuple[int, int]]:
        """Sizes with a graph: sequences, and pages of a sequence."""
        return [size for size, bucket in self._buckets.items() if bucket.recording is not None]

    def takes(self, batch: RaggedBatch) -> bool:
        """Whether this is a decode pass behind other tokens, and the model can be captured."""
        decodes = len(batch.ids) == len(batch.sequences)
        if self._slots is not None:
            decodes = decodes and bool((batch.seq_lens > 1).all())
        return self.refused is None and decodes

    def __call__(
        self,
        batch: RaggedBatch,
        states: SequenceStates | None = None,
        keep: Collection[int] = (),
    ) -> torch.Tensor:
        """Computes a decode pass; logits ``[B, V]``, overwritten by the next pass of its size.

        Args:
            batch: One that this takes.
            states: Of its sequences, in the slots of this; None for a model that keeps none.
            keep: Sequences whose state before the pass becomes a snapshot.

        Raises:
            Exception: Whatever the model's code raises, also eagerly.

        Warns:
            RuntimeWarning: The model cannot be captured: it is computed eagerly from now on.
        """
        count = len(batch.sequences)
        try:
            if states is None:
                return self._compute(batch, None)[:count]
            sequences, lengths = batch.sequences.tolist(), batch.seq_lens.tolist()
            with states.moving(sequences, lengths, 1, keep) as move:
                return self._compute(batch, move)[:count]
        except Exception as error:  # whatever a model's code does that a graph cannot hold
            self._refuse(error)
        # Keys and values of a pass that broke off are written again, to the same slots.
        if states is None:
            return paged_forward(self._model, self._pool, batch)
        return stateful_forward(self._model, self._pool, batch, states, keep=keep)

    def _compute(self, batch: RaggedBatch, move: StateMove | None) -> torch.Tensor:
        bucket = self._bucket_of(batch)
        decode, recording = bucket.decode, bucket.recording
        if move is None:
            decode.fill(batch)
        else:
            assert isinstance(decode, StatefulDecodePass)
            decode.fill_states(batch, move, once=recording is not None)
            move.writing = True
        if recording is not None:
            recording.replay()
            return recording.result
        try:
            return self._first_passes(bucket)
        except BaseException:  # it may be computed again
            if move is not None:
                assert isinstance(decode, StatefulDecodePass)
                decode.take_back()
                move.writing = False
            raise

    def _first_passes(self, bucket: _Bucket) -> torch.Tensor:
        """Until there is a recording."""
        if bucket.computed < WARM_UP_PASSES:
            bucket.computed += 1
            if bucket.computed == WARM_UP_PASSES:  # before that, libraries may wait as they load
                return self._recorder.rehearse(bucket.decode.forward)
            return bucket.decode.forward()
        bucket.recording = self._recorder.record(bucket.decode.forward)
        if not bucket.recording.computed:
            bucket.recording.replay()
        return bucket.recording.result

    def _bucket_of(self, batch: RaggedBatch) -> _Bucket:
        sequences = min(padded_size(len(batch.sequences)), self._max_sequences)
        size = sequences, padded_size(batch.block_table.shape[1], _FEWEST_PAGES)
        bucket = self._buckets.get(size)
        if bucket is None:
            place = (self._model, self._pool, self._index, *size)
            if self._slots is None:
                decode = DecodePass(*place, self._compiled)
            else:
                decode = StatefulDecodePass(*place, self._slots)
            bucket = self._buckets[size] = _Bucket(decode)
        return bucket

    def _refuse(self, error: Exception) -> None:
        reason = str(error).split("\n", 1)[0]
        self.refused = f"{type(error).__name__}: {reason}"
        self.out_of_memory = isinstance(error, torch.OutOfMemoryError)
        self._buckets.clear()
        warnings.warn(
            f"decode passes of the {self._name} model are computed eagerly, not as graphs:"
            f' {reason}; execution="eager" asks for that',
            RuntimeWarning,
            stacklevel=2,
        )
