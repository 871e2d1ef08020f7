"""Both models on one arena of pages: ragged batches, preemption when memory runs short."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glimprouter.hf.attention.fused_layers import FusedLayers, Writing
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.attention.paged import paged_forward
from glimprouter.hf.attention.stateful import rows_together, stateful_forward
from glimprouter.hf.engine.base import Engine
from glimprouter.hf.engine.begun_pass import BegunPass
from glimprouter.hf.engine.device_memory import DeviceMemory
from glimprouter.hf.engine.kept_pool import KeptPool
from glimprouter.hf.engine.pass_groups import bounded, grouped, wanted_rows
from glimprouter.hf.graphs.compiled import CompiledForward
from glimprouter.hf.graphs.sizes import Piece
from glimprouter.hf.pair.devices import KvMemory, memory_for, models_by_device
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.sequence.events import PageUsage
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.hf.sequence.saved import bytes_as_tensor, tensor_as_bytes
from glimprouter.hf.state.form import StateForm
from glimprouter.hf.state.sequences import PackedState, SequenceStates
from glimprouter.kv import KvCache, RaggedBatch
from glimprouter.router import StepOutputs, StepRouter

# Text may have more tokens in the vocabulary of the model that did not write it.
_TRANSLATED_GROWTH = 2
_SAVED, _STATE = "kv", "state"  # names in what is saved


@dataclass(frozen=True)
class _Preempted:
    """A sequence out of the way.

    Attributes:
        kv: Bytes of its pages and tokens.
        computed: Tokens that each model has computed.
        states: Of the models that keep some, by name.
    """

    kv: bytes
    computed: list[int]
    states: dict[str, PackedState]


def _most_tokens(record: SequenceRecord) -> list[int]:
    """Most tokens of each model, prompt included."""
    return [len(record.prompt_of(name)) + record.max_new_tokens for name in MODELS]


class PagedEngine(Engine):
    """All rows that wait for a model in one packed forward pass over pages.

    Models on one device share an arena: pages go to whichever needs them. When they run short,
    sequences are preempted to host memory and taken back later.

    A model whose layers keep states beside keys and values has a slot for each sequence's, and
    computes rows of equal length together.
    """

    planned = True

    def __init__(
        self,
        small: Any,
        large: Any,
        records: Sequence[SequenceRecord],
        *,
        max_sequences: int,
        memory: KvMemory,
        translation: Translation | None,
        compiled: Mapping[str, CompiledForward] | None,
        devices: Mapping[str, str],
        spare_rows: bool,
        kept: Mapping[str, KeptPool],
        fused: Mapping[str, FusedLayers],
        state_forms: Mapping[str, StateForm],
        num_snapshots: int,
    ) -> None:
        """Arenas that hold the longest sequences, as far as they may: one on each device.

        Args:
            small: The small model.
            large: The large model.
            records: The sequences to come.
            max_sequences: Sequences in flight.
            memory: Bytes for keys, values and states on each device; None for what
                ``max_sequences`` of the longest sequences need, up to half of the device's.
            translation: Translation of the models' vocabularies; None where both have the same.
            compiled: Forward passes of both models as graphs, by name; None computes eagerly.
            devices: Where each model's pages lie, by name: beside it.
            spare_rows: Whether more sequences may come, forks or loaded ones: ``max_sequences`` as
                long as the longest are planned for then.
            kept: By device where the pool comes from, with graphs of passes; a device that is not
                named has a pool of its own, and no graphs.
            fused: Layers that eager passes compute in their fused form, by the model's name; none
                of a model that is not named.
            state_forms: What models keep beside keys and values, by name; none of one that is not
                named.
            num_snapshots: Earlier states of a sequence that are kept, >= 0.

        Raises:
            ValueError: An arena cannot hold the longest sequence.
        """
        self._models = dict(zip(MODELS, (small, large), strict=True))
        self._compiled = compiled
        self._fused = fused
        self._devices = devices
        layouts = [kv_layout(own, state_forms.get(name)) for name, own in self._models.items()]
        lengths = [_most_tokens(record) for record in records]
        places = {
            device: DeviceMemory(
                self,
                device,
                names,
                layouts,
                lengths,
                num_bytes=memory_for(memory, names[0]),
                max_sequences=max_sequences,
                spare_rows=spare_rows,
                growth=1 if translation is None else _TRANSLATED_GROWTH,
                kept=kept.get(device),
                state_forms=state_forms,
                num_snapshots=num_snapshots,
            )
            for device, names in models_by_device(devices).items()
        }
        self._memory = list(places.values())
        self._pools = {name: places[devices[name]].pool for name in MODELS}
        self._graphs = {name: own for place in self._memory for name, own in place.graphs.items()}
        self._states = {
            name: SequenceStates(own, num_snapshots)
            for place in self._memory
            for name, own in place.slots.items()
        }
        vocabularies = translation.map if translation else None
        self._cache = KvCache(list(self._pools.values()), max_sequences, vocabularies)
        super().__init__(self._cache, translation)
        self._saved: dict[int, _Preempted] = {}

    def open(self, record: SequenceRecord) -> bool:
        """Takes a sequence in when its tokens, and some pages more, fit."""
        if any(states.is_full for states in self._states.values()):
            return False
        saved = self._saved.get(record.index)
        tokens = [len(record.prompt_of(name)) + len(record.generated) for name in MODELS]
        if saved is not None:  # in its own vocabulary a model may have computed more
            tokens = [max(pair) for pair in zip(tokens, saved.computed, strict=True)]
        # Room for each of the others to grow, or one of them would be preempted at once.
        spare = 1 + len(self._sequences)
        if self._sequences and not all(own.has_room(tokens, spare) for own in self._memory):
            return False
        if saved is None:
            sequence = self._cache.open([record.prompt.small, record.prompt.large])
        else:
            sequence = self._cache.load(saved.kv)
            del self._saved[record.index]
        for name, states in self._states.items():
            states.open(sequence, None if saved is None else saved.states[name])
        self._sequences[record.index] = sequence
        return True

    def check_room(self, record: SequenceRecord) -> None:
        """By the most tokens that it may have."""
        for own in self._memory:
            own.check(_most_tokens(record))

    def memory(self) -> PageUsage:
        """By sectors, which the models fill with pages of their own."""
        pools = [own.pool for own in self._memory]
        total = sum(pool.num_sectors * pool.sector_bytes for pool in pools)
        free = sum(pool.num_free_sectors * pool.sector_bytes for pool in pools)
        return PageUsage(total - free, total)

    def preempt(self, record: SequenceRecord) -> None:
        """What both models keep goes to host memory until the sequence is opened again."""
        sequence = self._sequences[record.index]
        packed = {name: states.pack(sequence) for name, states in self._states.items()}
        computed = [
            self._cache.num_computed_tokens(index, sequence) for index in range(len(MODELS))
        ]
        self._saved[record.index] = _Preempted(self._cache.save(sequence), computed, packed)
        self.close(record)

    def close(self, record: SequenceRecord) -> None:
        """Frees pages and states."""
        sequence = self._sequences[record.index]
        super().close(record)
        for states in self._states.values():
            states.close(sequence)

    def fork(self, record: SequenceRecord, twin: SequenceRecord) -> None:
        """Opens a copy, which shares pages and states until either goes on.

        Raises:
            RuntimeError: There is no memory for the states of one sequence more.
        """
        if any(states.is_full for states in self._states.values()):
            raise RuntimeError(
                "there is no memory for the state of one sequence more; wait until a sequence"
                " ends, cancel one, or make the RoutedModel with a larger kv_memory_bytes"
            )
        super().fork(record, twin)
        for states in self._states.values():
            states.fork(self._sequences[record.index], self._sequences[twin.index])

    def save(self, record: SequenceRecord) -> dict[str, torch.Tensor]:
        """What ``KvCache.save`` gives, and the states as ``"state.<model>.<name>"``."""
        sequence = self._sequences[record.index]
        memory = {_SAVED: bytes_as_tensor(self._cache.save(sequence))}
        for name, states in self._states.items():
            named = states.pack(sequence).named()
            memory.update({f"{_STATE}.{name}.{key}": tensor for key, tensor in named.items()})
        return memory

    def restore(self, record: SequenceRecord, memory: dict[str, torch.Tensor]) -> None:
        """Kept as a preempted sequence; memory is taken when it is opened."""
        saved = tensor_as_bytes(memory[_SAVED])
        computed = self._cache.check_saved(saved)
        most = [max(pair) for pair in zip(_most_tokens(record), computed, strict=True)]
        for own in self._memory:
            own.check(most)
        packed = {}
        for name, states in self._states.items():
            prefix = f"{_STATE}.{name}."
            named = {
                key.removeprefix(prefix): tensor
                for key, tensor in memory.items()
                if key.startswith(prefix)
            }
            least = computed[MODELS.index(name)]
            packed[name] = PackedState.from_named(named, states.slots.form, least)
        self._saved[record.index] = _Preempted(saved, computed, packed)

    def _unseen(self, model: str, record: SequenceRecord) -> int:
        """Those behind the last state that there is."""
        unseen = super()._unseen(model, record)
        if (states := self._states.get(model)) is not None:
            index, sequence = MODELS.index(model), self._sequences[record.index]
            computed = self._cache.num_computed_tokens(index, sequence)
            again = computed - states.go_on(sequence, computed)
            self._cache.forget(index, sequence, again)
            unseen += again
        return unseen

    def _recomputed(self, index: int, sequence: int) -> int:
        """As the states say."""
        states = self._states.get(MODELS[index])
        return 0 if states is None else states.recomputed(sequence)

    def groups(
        self, model: str, records: Sequence[SequenceRecord]
    ) -> Iterable[list[SequenceRecord]]:
        """Those that may share a pass; of models with states, rows of equal length."""
        unseen = {record.index: self._unseen(model, record) for record in records}
        if (states := self._states.get(model)) is not None:
            yield from self._rows_together(model, records, states)
            return
        index = MODELS.index(model)
        graphs = self._graphs.get(model)
        rule = None if graphs is None or graphs.refused is not None else graphs.rule
        pieces = {place: Piece(tokens, 0) for place, tokens in unseen.items()}
        if rule is not None:  # nobody else asks how long sequences are
            for place, piece in pieces.items():
                length = self._cache.length(index, self._sequences[place])
                pieces[place] = piece._replace(length=length)
        yield from grouped(records, pieces, device=self._devices[model], replayed=rule)

    def _rows_together(
        self, model: str, records: Sequence[SequenceRecord], states: SequenceStates
    ) -> Iterator[list[SequenceRecord]]:
        """Rows whose last passes are of equal length."""
        by_number = dict(zip(self._numbers(records), records, strict=True))
        index = MODELS.index(model)
        last = {}  # tokens of the last pass, and whether it is the first one, too
        for sequence in by_number:
            ends = states.ends(sequence, self._cache.length(index, sequence))
            start = [states.length(sequence), *ends][-2]
            last[sequence] = start == 0, ends[-1] - start
        for together in rows_together(last):
            group = [by_number[sequence] for sequence in together]
            piece = Piece(last[together[0]][1], 0)  # how long they are says nothing here
            yield from bounded(group, dict.fromkeys((record.index for record in group), piece))

    def _recompute(self, model: str, records: Sequence[SequenceRecord]) -> None:
        """The passes from the last state to the present, one sequence after another."""
        states, index = self._states.get(model), MODELS.index(model)
        if states is None:
            return
        for record in records:
            sequence = self._sequences[record.index]
            for end in states.ends(sequence, self._cache.length(index, sequence))[:-1]:
                start = states.length(sequence)
                self._pass(model, self._cache.prepare(index, [sequence], [end]), [])
                record.note_pass(model, start)

    def _compute(
        self, model: str, records: Sequence[SequenceRecord], wanted: Sequence[int]
    ) -> torch.Tensor:
        """One packed forward pass over exactly the unseen tokens."""
        batch = self._cache.prepare(MODELS.index(model), self._numbers(records))
        return self._pass(model, batch, self._at_step_start(records), wanted)

    def begin(self, model: str, records: Sequence[SequenceRecord]) -> BegunPass:
        """As :meth:`forward`, in two halves; of a model that keeps no states.

        Raises:
            OutOfPages: Nothing has changed; preempt a sequence.
        """
        index, sequences = MODELS.index(model), self._numbers(records)
        starts = [self._cache.num_computed_tokens(index, sequence) for sequence in sequences]
        wanted = [self._wanted(model, record) for record in records]
        batch = self._cache.prepare(index, sequences)
        try:
            rows, graphs = wanted_rows(batch, wanted), self._graphs.get(model)
            alone = graphs is not None and graphs.becomes_graph(batch, len(rows))
            compute = functools.partial(self._logits, model, batch, rows, ())
            return BegunPass(model, records, starts, batch, compute, alone)
        except BaseException:
            self._cache.abandon(batch)
            raise

    def end(self, begun: BegunPass, *, computed: bool) -> None:
        """Its logits are there; or else it is as if it had never begun."""
        if not computed:
            self._cache.abandon(begun.batch)
            return
        self._cache.complete(begun.batch)
        self._note_pass(begun.model, begun.records, begun.starts)

    def write_ahead(
        self,
        model: str,
        records: Sequence[SequenceRecord],
        router: StepRouter,
        outputs: tuple[StepOutputs, StepOutputs],
        seconds: float,
    ) -> None:
        """By the model's native pass, where it has one."""
        fused = self._fused.get(model)
        if fused is None or fused.whole is None or not fused.whole.takes(len(records)):
            return
        index, sequences = MODELS.index(model), self._numbers(records)
        longest = 1 + max(self.computed(model, record) for record in records)
        rows = [record.row for record in records]
        writing = Writing(self._cache, router, index, sequences, rows, *outputs)
        fused.whole.passes_ahead(writing, longest, seconds)

    def _at_step_start(self, records: Sequence[SequenceRecord]) -> list[int]:
        return [self._sequences[record.index] for record in records if record.at_step_start]

    def _pass(
        self,
        model: str,
        batch: RaggedBatch,
        keep: Sequence[int],
        wanted: Sequence[int] = (),
    ) -> torch.Tensor:
        """Computes a batch; the states of ``keep`` become snapshots."""
        try:
            logits = self._logits(model, batch, wanted_rows(batch, wanted), keep)
        except BaseException:
            self._cache.abandon(batch)
            raise
        self._cache.complete(batch)
        return logits

    def _logits(
        self, model: str, batch: RaggedBatch, rows: npt.NDArray[np.int32], keep: Sequence[int]
    ) -> torch.Tensor:
        """Computes a batch, which is completed or abandoned by the caller."""
        graphs, states = self._graphs.get(model), self._states.get(model)
        own, pool, fused = self._models[model], self._pools[model], self._fused.get(model)
        if graphs is not None and graphs.takes(batch, len(rows)):
            return graphs(batch, rows, states, keep)
        if states is not None:
            return stateful_forward(own, pool, batch, states, fused, keep)
        if self._compiled is None:
            return paged_forward(own, pool, batch, fused, rows)
        return self._compiled[model](pool, batch, rows)
