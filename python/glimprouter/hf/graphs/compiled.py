"""A model's forward pass over pages as compiled graphs (``torch.compile``)."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from typing import Any

import torch

from glimprouter.hf.attention.function import own_attention
from glimprouter.hf.attention.paged import kv_layout
from glimprouter.kv import KvCache, PagePool, RaggedBatch
from glimprouter.torch import PassTables, arena_of

# Of the sequences that the first graph is made for: no two sizes of the pass are equal, or the
# compiler would take them for one and the same.
_WARM_UP_LENGTHS = (97, 3, 5)
_numbers = itertools.count()


def _forward(
    model: Any, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor, tables: PassTables
) -> torch.Tensor:
    output = model(
        input_ids=ids,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=keep,
        glimprouter_pass=tables,
    )
    logits: torch.Tensor = output.logits[0]
    return logits


def own_code(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The function with code of its own: graphs of all models would share one limit otherwise."""
    name = f"{function.__name__}_{next(_numbers)}"
    code = function.__code__.replace(co_name=name)
    return types.FunctionType(code, function.__globals__, name)


class CompiledForward:
    """Does what :func:`glimprouter.hf.attention.paged.paged_forward` does for one model, compiled.

    Two graphs serve every pass: one for a single token (decoding one sequence), one for several
    tokens of any number of sequences. Both are made here, so that no pass has to wait later; a
    change of torch's number of threads makes them anew.
    """

    def __init__(self, model: Any, backend: Any = "inductor") -> None:
        """Compiles; takes seconds to minutes.

        Args:
            model: A model that can be served on pages.
            backend: Of ``torch.compile``.

        Raises:
            Exception: Whatever ``torch.compile(fullgraph=True)`` raises for the model's code.
        """
        self._model = model
        self._config = model.config.get_text_config()
        self.function = own_code(_forward)
        self._compiled = torch.compile(self.function, fullgraph=True, dynamic=True, backend=backend)
        self._warm_up()

    def __call__(self, pool: PagePool, batch: RaggedBatch) -> torch.Tensor:
        """Computes the batch's tokens; logits of each sequence's last one, ``[B, V]``.

        The caller completes or abandons the batch.
        """
        rows = batch.last_rows
        keep = torch.tensor(rows, dtype=torch.long)
        if len(rows) == 1 and len(batch.ids) > 1:
            keep = keep.repeat(2)  # a size of 1 would make a third graph
        with torch.inference_mode(), own_attention(self._config):
            logits: torch.Tensor = self._compiled(
                self._model,
                torch.tensor(batch.ids, dtype=torch.long)[None],
                torch.tensor(batch.positions, dtype=torch.long)[None],
                keep,
                PassTables.of(pool, batch, arena_of(pool, self._model.dtype)),
            )
        return logits[: len(rows)]

    def _warm_up(self) -> None:
        layout = kv_layout(self._model)
        pages = sum(length // layout.page_size + 1 for length in _WARM_UP_LENGTHS)
        pool = PagePool([layout], (pages + 2) * layout.page_bytes, layout.page_bytes)
        cache = KvCache(pool, len(_WARM_UP_LENGTHS))
        rows = [cache.open([[0] * length]) for length in _WARM_UP_LENGTHS]
        for sequences in (rows, rows[:1]):
            batch = cache.prepare(0, sequences)
            self(pool, batch)
            cache.complete(batch)
            cache.append(0, rows[0], [0])


def compile_pair(small: Any, large: Any) -> dict[str, CompiledForward]:
    """Both models of a pair by name; a model that is both is compiled once.

    Raises:
        RuntimeError: A model's code cannot be compiled.
    """
    compiled: dict[str, CompiledForward] = {}
    for name, model in (("small", small), ("large", large)):
        if name == "large" and large is small:
            compiled[name] = compiled["small"]
            continue
        try:
            compiled[name] = CompiledForward(model)
        except Exception as error:  # whatever a compiler says of code that it does not understand
            raise RuntimeError(
                f"the {name} model cannot be compiled ({type(error).__name__});"
                ' execution="eager" serves it'
            ) from error
    return compiled
