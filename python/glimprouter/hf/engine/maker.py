"""The engine of each run of a pair."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from glimprouter.hf.engine.base import Engine
from glimprouter.hf.engine.choice import EngineChoice
from glimprouter.hf.engine.gather import GatherEngine
from glimprouter.hf.engine.gather_runner import ModelRunner
from glimprouter.hf.engine.kept_pool import KeptPool
from glimprouter.hf.engine.native_runner import NativeRunner
from glimprouter.hf.engine.paged import PagedEngine
from glimprouter.hf.graphs.compiled import CompiledForward
from glimprouter.hf.graphs.compiled_pass import CompiledPass
from glimprouter.hf.pair.devices import KvMemory, models_by_device
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.sequence.record import SequenceRecord


class EngineMaker:
    """Makes the engine of each run; on devices it keeps what the next run can use again."""

    def __init__(
        self,
        models: Mapping[str, Any],
        choice: EngineChoice,
        max_sequences: int,
        translation: Translation | None,
        devices: Mapping[str, str],
        graphs: bool,
        compiled: Mapping[str, CompiledPass] | None,
        num_snapshots: int,
    ) -> None:
        """For a pair.

        Args:
            models: By name: small, large.
            choice: The engine that serves both, and the layers that it computes in fused form.
            max_sequences: Sequences in flight.
            translation: Translation of their vocabularies; None where both have the same.
            devices: Where the pages of each model lie, by name.
            graphs: Whether passes on devices are replayed as graphs.
            compiled: These passes, compiled, by name; None for the models' own code.
            num_snapshots: Earlier states that are kept of a sequence whose state cannot be cut.
        """
        self._models = dict(models)
        self._choice = choice
        self._max_sequences = max_sequences
        self._translation = translation
        self._devices = devices
        self._num_snapshots = num_snapshots
        self._kept: dict[str, KeptPool] = {}  # by device
        for device, names in models_by_device(devices).items() if graphs else ():
            if device != "cpu":
                own = {name: models[name] for name in names}
                forms = {name: form for name, form in choice.states.items() if name in names}
                self._kept[device] = KeptPool(
                    own, max_sequences, device, compiled, forms, choice.fused
                )

    def make(
        self,
        records: Sequence[SequenceRecord],
        kv_memory_bytes: KvMemory,
        compiled: Mapping[str, CompiledForward] | None,
        spare_rows: bool,
    ) -> Engine:
        """An engine without sequences.

        Args:
            records: The sequences to come.
            kv_memory_bytes: Memory of pages on each device, or of caches of the models' own; None
                for what the sequences need.
            compiled: Forward passes by name; None computes eagerly.
            spare_rows: Whether more sequences may come.

        Raises:
            ValueError: The memory cannot hold the longest sequence.
        """
        small, large = self._models.values()
        if self._choice.name != "paged":
            runners = [self._runner(name) for name in self._models]
            if kv_memory_bytes is not None and any(isinstance(r, ModelRunner) for r in runners):
                warnings.warn(
                    "kv_memory_bytes bounds pages and caches of the models' own; what is gathered"
                    " takes the memory that it needs",
                    RuntimeWarning,
                    stacklevel=4,
                )
            assert not isinstance(kv_memory_bytes, Mapping)  # the pair has checked it
            engine: Engine = GatherEngine(
                runners, self._max_sequences, self._translation, kv_memory_bytes
            )
            engine.drafts = self._choice.takes_drafts
            return engine
        engine = PagedEngine(
            small,
            large,
            records,
            max_sequences=self._max_sequences,
            memory=kv_memory_bytes,
            translation=self._translation,
            compiled=compiled,
            devices=self._devices,
            spare_rows=spare_rows,
            kept=self._kept,
            fused=self._choice.fused,
            state_forms=self._choice.states,
            num_snapshots=self._num_snapshots,
        )
        engine.drafts = self._choice.takes_drafts
        return engine

    def _runner(self, name: str) -> ModelRunner | NativeRunner:
        model, form = self._models[name], self._choice.forms.get(name)
        if form is None:
            return ModelRunner(name, model, self._max_sequences)
        return NativeRunner(name, model, self._max_sequences, form, self._num_snapshots)
