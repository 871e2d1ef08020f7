"""Which engine serves a pair, and the engine of each of its runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from glimprouter.hf.compiled import CompiledForward
from glimprouter.hf.compiled_decode import CompiledDecode
from glimprouter.hf.engine import Engine, GatherEngine
from glimprouter.hf.kept_pool import KeptPool
from glimprouter.hf.paged_attention import why_not_paged
from glimprouter.hf.paged_engine import PagedEngine
from glimprouter.hf.sequence import SequenceRecord
from glimprouter.hf.translation import Translation

EngineName = Literal["paged", "gather"]


def choose_engine(wanted: str, models: Mapping[str, Any], device: str) -> EngineName:
    """The engine that serves a pair.

    Args:
        wanted: ``"auto"``, ``"paged"`` or ``"gather"``.
        models: By name.
        device: Where the pages would lie.

    Raises:
        ValueError: ``"paged"`` is wanted, and a model cannot be served so.

    Warns:
        RuntimeWarning: ``"auto"`` falls back.
    """
    if wanted == "gather":
        return "gather"
    for name, model in models.items():
        reason = why_not_paged(model, device)
        if reason is None:
            continue
        message = f"the {name} model cannot be served on pages: {reason}"
        if wanted == "paged":
            raise ValueError(message + '; engine="gather" serves it')
        warnings.warn(
            message + "; falling back to the gathering engine", RuntimeWarning, stacklevel=3
        )
        return "gather"
    return "paged"


def choose_graphs(wanted: bool | None, engine: EngineName, device: str, compile: bool) -> bool:
    """Whether decode passes are replayed as graphs.

    Args:
        wanted: None for where it can be done.
        engine: That serves the pair.
        device: Where its pages lie.
        compile: Whether passes are to be compiled: on a device those that are captured.

    Raises:
        TypeError: No bool.
        ValueError: Something is wanted, and cannot be had.
    """
    if wanted is not None and not isinstance(wanted, bool):
        raise TypeError(f"graphs must be a bool or None, got {wanted!r}")
    if compile and engine != "paged":
        raise ValueError(f'compile=True needs engine="paged", this pair runs on {engine!r}')
    possible = engine == "paged" and device != "cpu"
    if wanted and not possible:
        raise ValueError(
            'graphs=True needs engine="paged" on a device, this pair runs on'
            f" {engine!r} on {device}"
        )
    if compile and possible and wanted is False:
        raise ValueError("compile=True on a device is for the passes that graphs=True captures")
    return possible if wanted is None else wanted


class EngineMaker:
    """Makes the engine of each run; on a device it keeps what the next run can use again."""

    def __init__(
        self,
        models: Mapping[str, Any],
        engine: EngineName,
        max_batch_size: int,
        translation: Translation | None,
        device: str,
        graphs: bool,
        compiled_decode: Mapping[str, CompiledDecode] | None,
    ) -> None:
        """For a pair.

        Args:
            models: By name: small, large.
            engine: That serves both.
            max_batch_size: Sequences in flight.
            translation: Of their vocabularies; None where both have the same.
            device: Where the pages lie.
            graphs: Whether decode passes are replayed as graphs.
            compiled_decode: These passes, compiled, by name; None for the models' own code.
        """
        self._models = dict(models)
        self._engine = engine
        self._max_batch_size = max_batch_size
        self._translation = translation
        self._device = device
        self._kept = KeptPool(models, max_batch_size, device, compiled_decode) if graphs else None

    def make(
        self,
        records: Sequence[SequenceRecord],
        kv_memory_bytes: int | None,
        compiled: Mapping[str, CompiledForward] | None,
        spare_rows: bool,
    ) -> Engine:
        """An engine without sequences.

        Args:
            records: The sequences to come.
            kv_memory_bytes: Of keys and values on pages; None for what the sequences need.
            compiled: Forward passes by name; None computes eagerly.
            spare_rows: Whether more sequences may come.

        Raises:
            ValueError: The memory cannot hold the longest sequence.
        """
        small, large = self._models.values()
        if self._engine == "gather":
            return GatherEngine(small, large, self._max_batch_size, self._translation)
        return PagedEngine(
            small,
            large,
            records,
            self._max_batch_size,
            kv_memory_bytes,
            self._translation,
            compiled,
            self._device,
            spare_rows,
            self._kept,
        )
