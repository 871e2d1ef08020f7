"""A model's decode pass on a device, compiled (``torch.compile``): what its graphs then hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from glimprouter.hf.attention.function import own_attention
from glimprouter.hf.attention.paged import kv_layout
from glimprouter.hf.graphs.compiled import own_code
from glimprouter.hf.graphs.decode_pass import DecodePass
from glimprouter.kv import KvCache, PagePool
from glimprouter.torch import PassHandle

_WARM_UP_SEQUENCES = 3  # any number but 1, which has a graph of its own


def _decode(
    model: Any, ids: torch.Tensor, positions: torch.Tensor, handle: PassHandle
) -> torch.Tensor:
    output = model(input_ids=ids, position_ids=positions, use_cache=False, glimprouter_pass=handle)
    logits: torch.Tensor = output.logits[0]
    return logits


class CompiledDecode:
    """The decode pass of one model, compiled for one sequence and for any other number of them."""

    def __init__(
        self, model: Any, device: str, max_sequences: int, backend: Any = "inductor"
    ) -> None:
        """Compiles what is needed; takes seconds to minutes.

        Args:
            model: A model that can be served on pages.
            device: Where it is, other than the CPU.
            max_sequences: The most of a pass.
            backend: Of ``torch.compile``.

        Raises:
            Exception: Whatever ``torch.compile(fullgraph=True)`` raises for the model's code.
        """
        self._model = model
        self._config = model.config.get_text_config()
        self.function = own_code(_decode)
        self._compiled = torch.compile(self.function, fullgraph=True, dynamic=True, backend=backend)
        self._warm_up(device, max_sequences)

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, handle: PassHandle
    ) -> torch.Tensor:
        """Logits ``[n, V]`` of ids and positions ``[1, n]``, over the pages of a named pass."""
        with own_attention(self._config):
            logits: torch.Tensor = self._compiled(self._model, ids, positions, handle)
        return logits

    def _warm_up(self, device: str, max_sequences: int) -> None:
        layout = kv_layout(self._model)
        pages = _WARM_UP_SEQUENCES + 2
        pool = PagePool([layout], pages * layout.page_bytes, layout.page_bytes, device)
        cache = KvCache(pool, _WARM_UP_SEQUENCES)
        rows = [cache.open([[0]]) for _ in range(_WARM_UP_SEQUENCES)]
        for sequences, room in ((rows[:1], 1), (rows[1:], _WARM_UP_SEQUENCES)):
            if max_sequences == 1 < room:
                break
            batch = cache.prepare(0, sequences)
            decode = DecodePass(self._model, pool, 0, room, 1, self)
            decode.fill(batch)
            decode.forward()
            cache.complete(batch)


def compile_decode_pair(
    models: Mapping[str, Any], device: str, max_sequences: int
) -> dict[str, CompiledDecode]:
    """The decode passes of a pair by name; a model that is both is compiled once.

    Args:
        models: By name.
        device: Where they are.
        max_sequences: The most of a pass.

    Raises:
        RuntimeError: A model's code cannot be compiled.
    """
    compiled: dict[str, CompiledDecode] = {}
    for name, model in models.items():
        twin = next((other for other in compiled if models[other] is model), None)
        if twin is not None:
            compiled[name] = compiled[twin]
            continue
        try:
            compiled[name] = CompiledDecode(model, device, max_sequences)
        except Exception as error:  # whatever a compiler says of code that it does not understand
            raise RuntimeError(
                f"the {name} model cannot be compiled ({type(error).__name__});"
                ' execution="graphs" serves it'
            ) from error
    return compiled
