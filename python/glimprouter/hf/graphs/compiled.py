"""A model's forward pass over pages as compiled graphs (``torch.compile``)."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from glimprouter.hf.attention.function import own_attention
from glimprouter.hf.attention.given_cache import asked_of_a_cache
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.attention.paged import ModelPass
from glimprouter.kv import KvCache, PagePool, RaggedBatch
from glimprouter.torch import AttendingPass, PassTables, arena_of

# Of the sequences that the first graph is made for: no two sizes of the pass are equal, or the
# compiler would take them for one and the same.
_WARM_UP_LENGTHS = (97, 3, 5)
_numbers = itertools.count()
_Made = TypeVar("_Made")


def _forward(
    model: Any,
    ids: torch.Tensor,
    positions: torch.Tensor,
    keep: torch.Tensor | int,
    attending: AttendingPass,
) -> torch.Tensor:
    own = ModelPass(attending)
    output = model(
        input_ids=ids,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=keep,
        glimprouter_pass=own,
        **asked_of_a_cache(model.config.get_text_config(), positions, own),
    )
    logits: torch.Tensor = output.logits[0]
    return logits


def _own_code(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The function with code of its own: graphs of all models would share one limit otherwise."""
    name = f"{function.__name__}_{next(_numbers)}"
    code = function.__code__.replace(co_name=name)
    return types.FunctionType(code, function.__globals__, name)


class CompiledModel:
    """A model's code over packed tokens, compiled for passes that a graph can hold.

    Attributes:
        model: The model.
        function: What is compiled; its code belongs to this model alone.
    """

    def __init__(self, model: Any, backend: Any = "inductor") -> None:
        """Compiles nothing yet: the first pass of a kind does.

        Args:
            model: A model that can be served on pages.
            backend: Backend of ``torch.compile``.
        """
        self.model = model
        self.function = _own_code(_forward)
        self._config = model.config.get_text_config()
        self._compiled = torch.compile(self.function, fullgraph=True, dynamic=True, backend=backend)

    def logits(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        attending: AttendingPass,
        keep: torch.Tensor | int = 0,
    ) -> torch.Tensor:
        """Logits ``[B, V]``.

        Args:
            ids: ``[1, T]``.
            positions: ``[1, T]``.
            attending: The pass, made of tensors and numbers.
            keep: Tokens whose logits are wanted, ``[B]``; 0 for all.

        Raises:
            Exception: Whatever ``torch.compile(fullgraph=True)`` raises for the model's code.
        """
        with own_attention(self._config):
            logits: torch.Tensor = self._compiled(self.model, ids, positions, keep, attending)
        return logits


def warm_up_cache(
    model: Any, lengths: Sequence[int], device: str = "cpu"
) -> tuple[PagePool, KvCache, list[int]]:
    """Pages for passes that have the graphs made, and sequences of these lengths.

    Args:
        model: Whose pages they are.
        lengths: Tokens of each sequence.
        device: The device of the pages.

    Returns:
        The pool, the cache, and its sequences: each has room for one more token.
    """
    layout = kv_layout(model)
    pages = sum(length // layout.page_size + 1 for length in lengths)
    pool = PagePool([layout], (pages + 2) * layout.page_bytes, layout.page_bytes, device)
    cache = KvCache(pool, len(lengths))
    return pool, cache, [cache.open([[0] * length]) for length in lengths]


class CompiledForward(CompiledModel):
    """Does what :func:`glimprouter.hf.attention.paged.paged_forward` does for one model, compiled.

    Two graphs serve every pass: one for a single token (decoding one sequence), one for several
    tokens of any number of sequences. Both are made here, so that no pass has to wait later; a
    change of torch's number of threads makes them anew.
    """

    def __init__(self, model: Any, backend: Any = "inductor") -> None:
        """Compiles; takes seconds to minutes.

        Args:
            model: A model that can be served on pages.
            backend: Backend of ``torch.compile``.

        Raises:
            Exception: Whatever ``torch.compile(fullgraph=True)`` raises for the model's code.
        """
        super().__init__(model, backend)
        pool, cache, rows = warm_up_cache(model, _WARM_UP_LENGTHS)
        for sequences in (rows, rows[:1]):
            batch = cache.prepare(0, sequences)
            self(pool, batch)
            cache.complete(batch)
            cache.append(0, rows[0], [0])

    def __call__(
        self, pool: PagePool, batch: RaggedBatch, wanted: npt.NDArray[np.int32] | None = None
    ) -> torch.Tensor:
        """Computes the batch's tokens; logits of some of them, ``[rows, V]``.

        The caller completes or abandons the batch.

        Args:
            pool: Where the pages are.
            batch: The pass.
            wanted: Tokens whose logits are wanted; None for each sequence's last one.
        """
        rows = batch.last_rows if wanted is None else wanted
        keep = torch.tensor(rows, dtype=torch.long)
        if len(rows) == 1 and len(batch.ids) > 1:
            keep = keep.repeat(2)  # a size of 1 would make a third graph
        ids = torch.tensor(batch.ids, dtype=torch.long)[None]
        positions = torch.tensor(batch.positions, dtype=torch.long)[None]
        with torch.inference_mode():
            tables = PassTables.of(pool, batch, arena_of(pool, self.model.dtype))
            return self.logits(ids, positions, tables, keep)[: len(rows)]


def compile_each(
    models: Mapping[str, Any],
    make: Callable[..., _Made],
    devices: Mapping[str, str] | None = None,
) -> dict[str, _Made]:
    """The models of a pair, compiled; a model that is both is compiled once.

    Args:
        models: By name.
        make: Compiles one.
        devices: By name where its pages are, which ``make`` is told; None for the CPU.

    Raises:
        RuntimeError: A model's code cannot be compiled.
    """
    compiled: dict[str, _Made] = {}
    for name, model in models.items():
        place = () if devices is None else (devices[name],)
        twin = next(
            (
                other
                for other in compiled
                if models[other] is model and (devices is None or (devices[other],) == place)
            ),
            None,
        )
        if twin is not None:
            compiled[name] = compiled[twin]
            continue
        try:
            compiled[name] = make(model, *place)
        except Exception as error:  # whatever a compiler says of code that it does not understand
            raise RuntimeError(
                f"the {name} model cannot be compiled ({type(error).__name__});"
                ' execution="eager" serves it'
            ) from error
    return compiled
