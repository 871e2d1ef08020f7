"""Memory and graphs that outlive a run on a device, so that the next one captures nothing again."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.graphs.fixed_pass import CompiledCall
from glimprouter.hf.graphs.pass_graphs import PassGraphs
from glimprouter.hf.graphs.recorders import recorder_for
from glimprouter.hf.graphs.sizes import padded_size
from glimprouter.hf.pair.adapters import adapters_in_use
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.state.form import StateForm
from glimprouter.hf.state.slots import StateSlots
from glimprouter.kv import KvLayout, PagePool


def _held_of(model: Any) -> tuple[object, ...]:
    """What graphs hold of a model: the addresses of its weights, and the adapters in use."""
    tensors = chain(model.parameters(), model.buffers())
    return (adapters_in_use(model), *(tensor.data_ptr() for tensor in tensors))


class KeptPool:
    """The pool of the last run of a pair on a device and its graphs, for the next run after it.

    Graphs hold the addresses of pages, states and weights. So a run has the pool to itself, a
    larger one takes its place where a run needs more, and weights that have moved void the graphs,
    as do other adapters: which of them a layer adds, and how much of it, is in the graph.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        max_sequences: int,
        device: str,
        compiled: Mapping[str, CompiledCall] | None = None,
        forms: Mapping[str, StateForm] | None = None,
        fused: Mapping[str, FusedLayers] | None = None,
    ) -> None:
        """Nothing is allocated yet.

        Args:
            models: The models of the pair on this device, by name.
            max_sequences: The most of a pass.
            device: Other than the CPU.
            compiled: The passes of the models, compiled, by name; None for the models' own code.
            forms: Of the states of models that keep some, by name.
            fused: Layers that are computed in their fused form, by name.
        """
        self._models = dict(models)
        self._max_sequences = max_sequences
        self._device = device
        self._compiled = compiled or {}
        self._forms = forms or {}
        self._fused = fused or {}
        self._recorder = recorder_for(device)
        self._slots: dict[str, StateSlots] = {}
        self._pool: PagePool | None = None
        self._graphs: dict[str, PassGraphs] = {}
        self._held: list[tuple[object, ...]] = []
        self._user: weakref.ref[object] | None = None

    @property
    def free_bytes(self) -> int:
        """Bytes of unused memory: what the next run may have besides what is free."""
        if self._pool is None or self._in_use():
            return 0
        states = sum(slots.num_bytes for slots in self._slots.values())
        return (self._pool.num_sectors + 1) * self._pool.sector_bytes + states

    def take_slots(self, count: int) -> Mapping[str, StateSlots]:
        """Slots for the states of a run, by the model's name: at least so many, all of them free.

        Call it before :meth:`take`: others void the graphs.
        """
        if not self._forms:
            return {}
        held = self._slots.values()
        if self._in_use() or not held or any(slots.num_slots < count for slots in held):
            if self._in_use():  # that run may replay on another thread
                self._recorder = recorder_for(self._device)
            self._graphs, self._slots = {}, {}  # before more is allocated
            self._slots = {name: StateSlots(form, count) for name, form in self._forms.items()}
        for slots in self._slots.values():
            slots.clear()  # a run that was given up has left some
        return self._slots

    def take(
        self, user: object, layouts: Sequence[KvLayout], sectors: int, most: int
    ) -> tuple[PagePool, Mapping[str, PassGraphs]]:
        """An empty pool for a run, and the graphs of its passes.

        Args:
            user: Who has it to itself while it lives.
            layouts: Layouts of both models of the pair.
            sectors: That the run may use, the one of the null page included.
            most: That may be allocated for it and for longer runs to come.
        """
        sector_bytes = PagePool.default_sector_bytes(layouts)
        pool = self._pool
        if pool is None or self._in_use() or not _fits(pool, layouts, sectors):
            if self._in_use():  # that run may replay on another thread
                self._recorder = recorder_for(self._device)
            self._graphs, self._pool, pool = {}, None, None  # before more is allocated
            count = min(padded_size(sectors), most)
            pool = self._pool = PagePool(layouts, count * sector_bytes, sector_bytes, self._device)
        held = [_held_of(model) for model in self._models.values()]
        short = any(graphs.out_of_memory for graphs in self._graphs.values())
        if not self._graphs or held != self._held or short:
            self._held = held
            self._graphs = {
                name: PassGraphs(
                    name,
                    model,
                    pool,
                    MODELS.index(name),
                    self._max_sequences,
                    self._recorder,
                    self._compiled.get(name),
                    self._slots.get(name),
                    self._fused.get(name),
                )
                for name, model in self._models.items()
            }
        pool.limit_sectors(sectors - 1)
        self._user = weakref.ref(user)
        return pool, self._graphs

    def _in_use(self) -> bool:
        return self._user is not None and self._user() is not None


def _fits(pool: PagePool, layouts: Sequence[KvLayout], sectors: int) -> bool:
    """Whether a run can have all of a pool."""
    return (
        all(pool.layout(index) == layout for index, layout in enumerate(layouts))
        and sectors <= pool.num_sectors + 1
        and pool.num_free_sectors == pool.num_sectors
    )
