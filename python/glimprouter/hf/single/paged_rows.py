"""Rows of a batch under ``generate()`` on pages: what each holds, and the pass in flight."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from glimprouter import _C
from glimprouter.hf.pair.devices import default_arena_bytes
from glimprouter.kv import KvCache, KvLayout, OutOfPages, PagePool, RaggedBatch
from glimprouter.torch import AttentionOptions


class PagedRows:
    """Keys and values of ``B`` rows of ``length`` tokens each, padding on the left included.

    The ledger of the cache below knows the number of tokens only: its ids are all 0.
    """

    def __init__(
        self, layout: KvLayout, context: int, max_sequences: int, memory_bytes: int | None
    ) -> None:
        """No rows; see :class:`glimprouter.hf.PagedCache`."""
        self.layout = layout
        self.length = 0
        self._sharing = frozenset(layout.sharing)
        self._context = context
        self._max_sequences = max_sequences
        self._pool = None if memory_bytes is None else PagePool([layout], memory_bytes)
        self._cache: KvCache | None = None
        self._rows: list[int | None] = []  # of the cache; None for a row of padding only
        self._tokens: list[int] = []  # [B] without padding
        self._batch: RaggedBatch | None = None  # the pass in flight
        self._added: list[int] = []  # [B] tokens of it
        self._real: torch.Tensor | None = None  # index of the tokens among [B * T]; None: all

    def _ready(self, batch_size: int) -> KvCache:
        """The cache, made when the number of rows is known."""
        if self._cache is None:
            if self._pool is None:
                sector = PagePool.default_sector_bytes([self.layout])
                pages = batch_size * (self._context // self.layout.page_size + 1)
                sectors = pages // (sector // self.layout.page_bytes) + 2
                self._pool = PagePool(
                    [self.layout], min(sectors * sector, default_arena_bytes("cpu"))
                )
            self._cache = KvCache(self._pool, self._max_sequences)
        return self._cache

    def begin(self, batch_size: int, new: int, mask: torch.Tensor | None) -> None:
        """Pages for ``new`` tokens a row.

        Args:
            batch_size: Rows of the pass.
            new: Tokens a row, padding included.
            mask: Bool ``[B, length + new]``, False for padding; None where there is none.

        Raises:
            ValueError: Another number of rows, or padding that is not on the left.
            OutOfPages: Nothing has changed.
        """
        self.abandon()
        if batch_size > self._max_sequences:
            raise ValueError(
                f"{batch_size} rows are more than max_sequences={self._max_sequences} of this"
                " PagedCache"
            )
        if self._rows and len(self._rows) != batch_size:
            raise ValueError(
                f"this PagedCache holds {len(self._rows)} rows, and {batch_size} came; reset() it"
                " before another batch"
            )
        real = self._real_tokens(batch_size, new, mask)
        tokens = self._tokens or [0] * batch_size
        added = [count - held for count, held in zip(real, tokens, strict=True)]
        self._prepare(self._rows or [None] * batch_size, tokens, added)
        self._real = None
        if mask is not None and sum(added) < batch_size * new:
            self._real = mask[:, -new:].flatten().nonzero()[:, 0]

    def _real_tokens(self, batch_size: int, new: int, mask: torch.Tensor | None) -> list[int]:
        """Tokens of each row after this pass."""
        total = self.length + new
        if mask is None:
            return [held + new for held in self._tokens or [0] * batch_size]
        if mask.shape != (batch_size, total):
            raise ValueError(
                f"attention_mask must have the shape [rows, tokens] = [{batch_size}, {total}], got"
                f" {list(mask.shape)}; a mask for every pair of tokens is not served"
            )
        counts = mask.sum(1)
        first = total - counts
        padded_left = bool((mask == (torch.arange(total) >= first[:, None])).all())
        real: list[int] = counts.tolist()
        for held, count in zip(self._tokens, real, strict=False):
            padded_left = padded_left and (count - held == new or (held == 0 and count <= new))
        if not padded_left:
            raise ValueError(
                "attention_mask must hide tokens on the left of a row only, and the same ones in"
                ' every pass; pad with padding_side="left"'
            )
        return real

    def _prepare(self, rows: list[int | None], tokens: list[int], added: list[int]) -> None:
        """Opens and extends sequences, then takes pages; all of it or nothing."""
        cache = self._ready(len(rows))
        extended = list(rows)
        for index, (row, count) in enumerate(zip(rows, added, strict=True)):
            if row is not None:
                cache.append(0, row, [0] * count)
            elif count:
                row = extended[index] = cache.open([[0]])
                cache.append(0, row, [0] * (count - 1))
        taking = [
            row for row, count in zip(extended, added, strict=True) if row is not None and count
        ]
        try:
            batch = cache.prepare(0, taking)
        except OutOfPages as error:
            self._withdraw(rows, extended, tokens)
            raise OutOfPages(
                f"the pages of this PagedCache cannot take {sum(added)} more tokens behind"
                f" {sum(tokens)}; give it more memory_bytes, or fewer or shorter rows"
            ) from error
        self._rows, self._tokens, self._batch, self._added = extended, tokens, batch, added

    def _withdraw(
        self, before: Sequence[int | None], after: Sequence[int | None], tokens: Sequence[int]
    ) -> None:
        """The ledger as it was: the tokens of a pass that is not to be."""
        assert self._cache is not None
        for old, row, held in zip(before, after, tokens, strict=True):
            if old is None and row is not None:
                self._cache.close(row)
            elif row is not None:
                self._cache.truncate(row, held - 1)  # the first token is the prompt

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Writes and reads the pages of one layer: ``[B, heads, T, size]`` to ``[B, T, ...]``."""
        assert self._pool is not None
        assert self._batch is not None
        batch_size, heads, new, _ = query.shape
        size = value.shape[-1]
        query, key, value = (self._packed(states) for states in (query, key, value))
        out = query.new_empty((*query.shape[:2], size))
        if layer not in self._sharing:
            _C.append_kv(self._pool, layer, self._batch, key, value)
        _C.paged_attention(self._pool, layer, self._batch, query, out, *options)
        if self._real is not None:  # what stands in place of padding is never looked at
            everything = out.new_zeros((batch_size * new, heads, size))
            out = everything.index_copy_(0, self._real, out)
        if layer == self.layout.num_layers - 1:
            self._complete(new)
        return out.view(batch_size, new, heads, size)

    def _packed(self, states: torch.Tensor) -> torch.Tensor:
        """``[B, heads, T, size]`` as the tokens of all rows, ``[tokens, heads, size]``."""
        flat = states.transpose(1, 2).flatten(0, 1)
        return flat if self._real is None else flat.index_select(0, self._real)

    def _complete(self, new: int) -> None:
        assert self._cache is not None
        assert self._batch is not None
        self._cache.complete(self._batch)
        self._batch = None
        self._tokens = [held + more for held, more in zip(self._tokens, self._added, strict=True)]
        self.length += new

    def abandon(self) -> None:
        """Gives back what a forward pass that did not reach its end has taken."""
        if self._batch is None:
            return
        assert self._cache is not None
        self._cache.abandon(self._batch)
        self._batch = None
        before = [row if held else None for row, held in zip(self._rows, self._tokens, strict=True)]
        self._withdraw(before, self._rows, self._tokens)
        self._rows = before if self.length else []
        self._tokens = self._tokens if self.length else []

    def crop(self, count: int) -> None:
        """Drops the last ``count`` tokens of every row."""
        self.abandon()
        if count > self.length:
            raise ValueError(f"cannot remove {count} tokens of {self.length}")
        if count == self.length:
            return self.clear()
        assert self._cache is not None
        for index, (row, held) in enumerate(zip(self._rows, self._tokens, strict=True)):
            kept = max(held - count, 0)
            if row is not None and kept == 0:
                self._cache.close(row)
                self._rows[index] = None
            elif row is not None:
                self._cache.truncate(row, kept - 1)
            self._tokens[index] = kept
        self.length -= count

    def select(self, indices: Sequence[int]) -> None:
        """Rows ``indices`` take the places of the rows; a row named twice shares its pages."""
        self.abandon()
        if not self._rows:
            return
        if len(indices) > self._max_sequences:
            raise ValueError(
                f"{len(indices)} rows are more than max_sequences={self._max_sequences}"
            )
        assert self._cache is not None
        for index, row in enumerate(self._rows):
            if row is not None and index not in indices:
                self._cache.close(row)
        chosen: list[int | None] = []
        for place, index in enumerate(indices):
            row = self._rows[index]
            again = index in indices[:place]
            chosen.append(self._cache.fork(row) if again and row is not None else row)
        self._tokens = [self._tokens[index] for index in indices]
        self._rows = chosen

    def clear(self) -> None:
        """No rows, and every page free."""
        self.abandon()
        for row in self._rows:
            if row is not None:
                assert self._cache is not None
                self._cache.close(row)
        self._rows, self._tokens, self.length = [], [], 0

    @property
    def batch_size(self) -> int:
        """Rows that there are."""
        return len(self._rows)
