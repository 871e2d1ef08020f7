"""Sequences whose passes are native calls, on small pages, and the logits of every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.decoder.host_pass import HostDecoderPass, find_host_pass
from glimprouter.kv import KvCache, PagePool


def found(model: Any) -> HostDecoderPass:
    own = find_host_pass(model)
    assert own is not None
    return own


class Rows:
    """Sequences on small pages; a pass brings some of them further, each by as many as are there.

    Attributes:
        logits: Of every token so far, of each sequence.
    """

    def __init__(self, model: Any, own: Any, count: int, dtype: Any = "float32") -> None:
        layout = kv_layout(model)
        small = type(layout)(layers=layout.layers, page_size=4, dtype=dtype)
        self._pool = PagePool([small], 250 * count * small.page_bytes, small.page_bytes)
        self._cache = KvCache(self._pool, count)
        self._own = own
        self._opened: dict[int, int] = {}
        self.logits: dict[int, list[torch.Tensor]] = {row: [] for row in range(count)}

    def go_on(self, pieces: dict[int, Sequence[int]]) -> None:
        for row, piece in pieces.items():
            if row in self._opened:
                self._cache.append(0, self._opened[row], list(piece))
            else:
                self._opened[row] = self._cache.open([list(piece)])
        batch = self._cache.prepare(0, [self._opened[row] for row in pieces])
        logits = self._own(self._pool, batch, np.arange(len(batch.ids), dtype=np.int32))
        self._cache.complete(batch)
        for row, own in zip(pieces, logits.split([len(p) for p in pieces.values()]), strict=True):
            self.logits[row] += list(own)


def whole(model: Any, own: HostDecoderPass, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits of every token, each sequence in one pass of its own."""
    rows = Rows(model, own, len(prompts))
    for row, prompt in enumerate(prompts):
        rows.go_on({row: prompt})
    return [torch.stack(rows.logits[row]) for row in range(len(prompts))]


def prompts_of(lengths: Sequence[int], vocabulary: int = 96) -> list[list[int]]:
    generator = np.random.default_rng(1)
    return [generator.integers(1, vocabulary, size=length).tolist() for length in lengths]
