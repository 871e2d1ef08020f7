"""Passes of a model as graphs: captured once for a size, replayed from then on.

A pass is some hundred launches from Python, which take many times as long as the kernels; a replay
is one. Sizes come in buckets (:mod:`glimprouter.hf.graphs.sizes`), of which those that were used
last are kept.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.paged import paged_forward
from glimprouter.hf.attention.stateful import stateful_forward
from glimprouter.hf.graphs.fixed_pass import CompiledCall, FixedPass
from glimprouter.hf.graphs.recorders import Recorder, Recording
from glimprouter.hf.graphs.sizes import PassSize, SizeRule
from glimprouter.hf.graphs.stateful_pass import StatefulDecodePass
from glimprouter.hf.pair.locks import recording
from glimprouter.hf.pair.lost import raise_if_lost
from glimprouter.hf.state.sequences import SequenceStates, StateMove
from glimprouter.hf.state.slots import StateSlots
from glimprouter.kv import PagePool, RaggedBatch

# Passes of a bucket that are computed eagerly: libraries make their choices and buffers, and a size
# that is hardly asked for is never captured.
WARM_UP_PASSES = 2
_MOST_SIZES = 64  # of a model; those that were not asked for longest go


@dataclass
class _Bucket:
    """One size of passes.

    Attributes:
        fixed: Its buffers.
        computed: Passes that were not replays.
        recording: None until it is captured.
    """

    fixed: FixedPass
    computed: int = 0
    recording: Recording | None = None


class PassGraphs:
    """The passes of one model over one pool.

    Hooks on the model see the first passes of a size only, not the replays.

    Attributes:
        rule: Which passes have a size; narrower once there was no memory for one.
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
        fused: FusedLayers | None = None,
    ) -> None:
        """Captures nothing yet.

        Args:
            name: Name of the model, for messages.
            model: That is served on pages.
            pool: A pool of pages on the model's device.
            index: Index of the model's layout in the pool.
            max_sequences: The most of a pass.
            recorder: The recorder of the pool's device.
            compiled: The model's pass, compiled; None for the model's own code.
            slots: Of the model's states; None where it keeps keys and values only.
            fused: Layers that the model's own code computes in their fused form; None for none.
        """
        heads = model.config.get_text_config().num_attention_heads
        self.rule = SizeRule.of(pool.layout(index), heads, max_sequences)
        self.refused: str | None = None
        self.out_of_memory = False
        self._name = name
        self._model = model
        self._pool = pool
        self._index = index
        self._recorder = recorder
        self._compiled = compiled
        self._slots = slots
        self._fused = fused
        self._buckets: dict[PassSize, _Bucket] = {}  # that was used last stands last

    @property
    def captured(self) -> list[PassSize]:
        """Sizes with a graph."""
        return [size for size, bucket in self._buckets.items() if bucket.recording is not None]

    def takes(self, batch: RaggedBatch, num_wanted: int) -> bool:
        """Whether a pass has a size, and the model can be captured.

        Of a model with states: a decode pass behind other tokens.

        Args:
            batch: The pass.
            num_wanted: Tokens whose logits are wanted.
        """
        size = self._size_of(batch, num_wanted)
        if size is not None and self._slots is not None:
            return size.most_tokens == 1 and bool((batch.seq_lens > 1).all())
        return size is not None

    def __call__(
        self,
        batch: RaggedBatch,
        wanted: npt.NDArray[np.int32],
        states: SequenceStates | None = None,
        keep: Collection[int] = (),
    ) -> torch.Tensor:
        """Computes a pass; logits ``[wanted, V]``, overwritten by the next pass of its size.

        Args:
            batch: One that this takes.
            wanted: Tokens of the batch whose logits are wanted.
            states: Of its sequences, in the slots of this; None for a model that keeps none.
            keep: Sequences whose state before the pass becomes a snapshot.

        Raises:
            DeviceLost: An eager pass would find no device either.
            Exception: Whatever the model's code raises, also eagerly.

        Warns:
            RuntimeWarning: The model cannot be captured, or there is no memory for passes of that
                size: they are computed eagerly from now on.
        """
        count = len(wanted)
        try:
            if states is None:
                return self._compute(batch, wanted, None)[:count]
            sequences, lengths = batch.sequences.tolist(), batch.seq_lens.tolist()
            with states.moving(sequences, lengths, 1, keep) as move:
                return self._compute(batch, wanted, move)[:count]
        except Exception as error:  # whatever a model's code does that a graph cannot hold
            raise_if_lost(error, str(self._model.device))
            self._refuse(error, self._size_of(batch, count))
        # Keys and values of a pass that broke off are written again, to the same slots.
        if states is None:
            return paged_forward(self._model, self._pool, batch, self._fused, wanted)
        return stateful_forward(self._model, self._pool, batch, states, self._fused, keep)

    def _compute(
        self, batch: RaggedBatch, wanted: npt.NDArray[np.int32], move: StateMove | None
    ) -> torch.Tensor:
        bucket = self._bucket_of(batch, len(wanted))
        fixed, recording = bucket.fixed, bucket.recording
        if move is None:
            fixed.fill(batch, wanted)
        else:
            assert isinstance(fixed, StatefulDecodePass)
            fixed.fill_states(batch, move, once=recording is not None)
            move.writing = True
        if recording is not None:
            recording.replay()
            return recording.result
        try:
            return self._first_passes(bucket)
        except BaseException:  # it may be computed again
            if move is not None:
                assert isinstance(fixed, StatefulDecodePass)
                fixed.take_back()
                move.writing = False
            raise

    def becomes_graph(self, batch: RaggedBatch, num_wanted: int) -> bool:
        """Whether this takes a pass that is one of the first of its size, and no replay yet."""
        if not self.takes(batch, num_wanted):
            return False
        size = self._size_of(batch, num_wanted)
        return size not in self._buckets or self._buckets[size].recording is None

    def _first_passes(self, bucket: _Bucket) -> torch.Tensor:
        """Until there is a recording."""
        with recording():
            return self._first_pass(bucket)

    def _first_pass(self, bucket: _Bucket) -> torch.Tensor:
        if bucket.computed < WARM_UP_PASSES:
            bucket.computed += 1
            if bucket.computed == WARM_UP_PASSES:  # before that, libraries may wait as they load
                return self._recorder.rehearse(bucket.fixed.forward)
            return bucket.fixed.forward()
        bucket.recording = self._recorder.record(bucket.fixed.forward)
        if not bucket.recording.computed:
            bucket.recording.replay()
        return bucket.recording.result

    def _size_of(self, batch: RaggedBatch, num_wanted: int) -> PassSize | None:
        return None if self.refused is not None else self.rule.size_of(batch, num_wanted)

    def _bucket_of(self, batch: RaggedBatch, num_wanted: int) -> _Bucket:
        size = self._size_of(batch, num_wanted)
        assert size is not None  # one that this takes
        bucket = self._buckets.pop(size, None)
        if bucket is None:
            while len(self._buckets) >= _MOST_SIZES:
                del self._buckets[next(iter(self._buckets))]
            place = self._model, self._pool, self._index, size
            if self._slots is None:
                bucket = _Bucket(FixedPass(*place, self._compiled, self._fused))
            else:
                bucket = _Bucket(StatefulDecodePass(*place, self._slots, self._fused))
        self._buckets[size] = bucket
        return bucket

    def _refuse(self, error: Exception, size: PassSize | None) -> None:
        """No graphs any more; where a large size found no memory, none as large."""
        reason = str(error).split("\n", 1)[0]
        which = ""
        if isinstance(error, torch.OutOfMemoryError) and size is not None and size.most_tokens > 1:
            token_pages = size.tokens * size.pages
            which = f" of {size.tokens} tokens or more"
            self.rule = dataclasses.replace(self.rule, most_token_pages=token_pages - 1)
            for own in [s for s in self._buckets if s.most_tokens > 1]:
                if own.tokens * own.pages >= token_pages:
                    del self._buckets[own]
        else:
            self.refused = f"{type(error).__name__}: {reason}"
            self.out_of_memory = isinstance(error, torch.OutOfMemoryError)
            self._buckets.clear()
        warnings.warn(
            f"passes{which} of the {self._name} model are computed eagerly, not as graphs:"
            f' {reason}; execution="eager" asks for that',
            RuntimeWarning,
            stacklevel=2,
        )
