"""Attention over pages under unmodified ``generate()``."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from glimprouter.config import check_integer
from glimprouter.hf.attention.function import ATTENTION_NAME, leave_note
from glimprouter.hf.attention.layers import kv_layout, why_not_attended
from glimprouter.hf.attention.trial import why_not_paged
from glimprouter.hf.pair.facts import context_length, unserved_layer
from glimprouter.hf.pair.locks import exclusive
from glimprouter.hf.single.paged_rows import PagedRows
from glimprouter.torch import AttentionOptions


class _CachePass:
    """The forward pass under way in a cache: each layer announces its keys, then attends."""

    def __init__(self, rows: PagedRows) -> None:
        self.rows = rows
        self._unread: list[int] = []  # layers whose keys no attention has taken yet

    def announce(self, layer: int, key: torch.Tensor) -> None:
        """Leaves a note on the keys, which brings the attention function here."""
        if layer == 0:
            self._unread.clear()
        if self._unread:
            raise RuntimeError(
                "the model's attention does not read the pages of this PagedCache; call"
                f' model.set_attn_implementation("{ATTENTION_NAME}")'
            )
        self._unread.append(layer)
        leave_note(key, self)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As in :class:`glimprouter.torch.AttendingPass`, rows padded on the left."""
        if torch.is_grad_enabled() and query.requires_grad:
            raise RuntimeError(
                "attention over pages has no gradients; run the model under torch.no_grad()"
            )
        if layer == 0:
            self.rows.begin(query.shape[0], query.shape[2], mask)
        out = self.rows.attend(layer, query, key, value, options)
        self._unread.clear()
        return out


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Hands keys and values through, with a note for the attention function."""

    is_sliding = False  # windows are the attention's own: pages keep the whole past
    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, attending: _CachePass, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._attending = attending
        self._rows = attending.rows
        self._index = index

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: pages are taken by the attention function."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new keys and values as they are."""
        self._attending.announce(self._index, key_states)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens of each row, padding included."""
        return self._rows.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of all keys, and the position of the first."""
        return self._rows.length + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class PagedCache(Cache):
    """Keys and values in pages, for ``model.generate(..., past_key_values=PagedCache(model))``.

    ``model.set_attn_implementation("glimprouter")`` comes first. Batches may be padded on the left;
    sliding windows and softcaps are served; beams share pages. The cache may be given to several
    calls, as any other: a continued chat computes only what is new. Its memory is freed with it.
    """

    def __init__(
        self, model: Any, memory_bytes: int | None = None, max_sequences: int = 256
    ) -> None:
        """An empty cache.

        Args:
            model: The causal language model that it is for, on the CPU.
            memory_bytes: For keys and values, taken as they are written; None for as many tokens as
                the model's context has in each row, up to half of this machine's memory.
            max_sequences: Rows at a time, beams included, >= 1.

        Raises:
            TypeError: An argument that is no integer.
            ValueError: A model that pages cannot serve or whose attention is another, or an
                argument out of range.
        """
        check_integer("max_sequences", max_sequences, 1)
        if memory_bytes is not None:
            check_integer("memory_bytes", memory_bytes, 1, high=2**63 - 1)
        _check_model(model)
        self._rows = PagedRows(kv_layout(model), context_length(model), max_sequences, memory_bytes)
        attending = _CachePass(self._rows)
        layers = range(self._rows.layout.num_layers)
        super().__init__(layers=[_Layer(attending, index) for index in layers])

    def reset(self) -> None:
        """Frees every page; the cache is as new."""
        self._rows.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Drops tokens at the end of every row.

        Args:
            tokens_to_remove: The negative of their number, as in ``transformers``; 0 for none.

        Raises:
            ValueError: A positive number, or more tokens than there are.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop takes the negative of a number of tokens, got {tokens_to_remove}"
            )
        if tokens_to_remove:
            self._rows.crop(-tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row ``i`` becomes what row ``beam_idx[i]`` is; nothing is copied until it is written."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        rows = range(self._rows.batch_size)
        self._rows.select([row for row in rows for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows, in this order."""
        self._rows.select(indices.tolist())


_served: weakref.WeakSet[Any] = weakref.WeakSet()  # models whose trial went well


def _check_model(model: Any) -> None:
    config = model.config.get_text_config()
    if model.device.type != "cpu":
        raise ValueError(f"the model is on {model.device}, and the pages are on the CPU")
    if (unserved := unserved_layer(model)) is not None:
        raise ValueError(
            f"the model has layers of type {unserved!r}; pages serve full and sliding attention"
        )
    if config._attn_implementation != ATTENTION_NAME:
        raise ValueError(
            f"the model computes attention by {config._attn_implementation!r}; call"
            f' model.set_attn_implementation("{ATTENTION_NAME}") first'
        )
    if model in _served:
        return
    with exclusive(model):  # looks at the layers by a pass, and the trial makes its windows narrow
        _try(model)
    _served.add(model)


def _try(model: Any) -> None:
    layout = kv_layout(model)
    if (odd := why_not_attended(layout)) is not None:
        raise ValueError(f"the model cannot be served on pages: {odd}")
    if layout.latent:
        raise ValueError(
            "the model compresses its keys before it gives them to a cache, which a PagedCache does"
            " not serve; RoutedModel does"
        )
    if layout.sharing:  # under generate() these compute the last token alone, of a mask of its own
        raise ValueError(
            f"the model's layers {layout.sharing} read the keys of earlier ones, which a PagedCache"
            " does not serve; RoutedModel does"
        )
    reason = why_not_paged(model)
    if reason is not None:
        raise ValueError(f"the model cannot be served on pages: {reason}")
