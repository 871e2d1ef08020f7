"""What the layers of a model keep of a token: seen in a pass over one, not read from a name."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from glimprouter.hf.attention.latent import lies_within
from glimprouter.hf.attention.paged import packed_forward
from glimprouter.hf.attention.stateful import rows_forward
from glimprouter.hf.state.form import StateForm
from glimprouter.kv import KvLayout, LayerShape
from glimprouter.torch import AttentionOptions

# Of a CPU's pages: what a core reads of one head is then long enough to be fetched ahead.
PAGE_SIZE = 256
# Of a GPU's at most: its blocks share a context page by page.
DEVICE_PAGE_SIZE = 64

_seen: WeakKeyDictionary[Any, tuple[LayerShape, ...]] = WeakKeyDictionary()


class ObservingPass:
    """A pass that attends to nothing and remembers what came by.

    Attributes:
        shapes: Of keys and values, by layer.
        options: Of the attention, likewise.
    """

    def __init__(self) -> None:
        """Nothing has come by."""
        self.shapes: dict[int, LayerShape] = {}
        self.options: dict[int, AttentionOptions] = {}
        self._keys: dict[int, torch.Tensor] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As in :class:`glimprouter.torch.AttendingPass`, but zeros."""
        if layer in self.shapes:
            raise ValueError(f"its layer {layer} attends more than once in a pass")
        # The very tensor of an earlier layer: this one keeps nothing.
        shares = next((index for index, kept in self._keys.items() if kept is key), None)
        if shares is None:
            self._keys[layer] = key
        self.options[layer] = options
        self.shapes[layer] = LayerShape(
            num_kv_heads=key.shape[1],
            head_dim=key.shape[3],
            value_dim=value.shape[3],
            shares=shares,
            latent=lies_within(value, key),
        )
        batch, heads, tokens, _ = query.shape
        return query.new_zeros((batch, tokens, heads, value.shape[3]))


@torch.inference_mode()
def layers_of(
    model: Any, form: StateForm | None = None, *, again: bool = False
) -> tuple[LayerShape, ...]:
    """What each layer of a model that attends keeps, found by a pass over one token.

    Args:
        model: A model of transformers.
        form: Of its states; None for a model without.
        again: Looks anew: an adapter may have changed the layers.

    Raises:
        ValueError: Its layers do not come to the attention over pages.
    """
    if again or model not in _seen:
        observer = ObservingPass()
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        if form is None:
            packed_forward(model, token, token, observer, None)
        else:
            rows_forward(model, token, token, observer, form, None, 0)
        found = sorted(observer.shapes)
        if not found or found != list(range(len(found))):
            raise ValueError(
                f"{len(found)} of its layers use the attention that it is configured for"
            )
        _seen[model] = tuple(observer.shapes[layer] for layer in found)
    return _seen[model]


def kv_layout(model: Any, form: StateForm | None = None) -> KvLayout:
    """The layout of a model's keys and values.

    Args:
        model: A model of transformers.
        form: Of its states; None for a model without.

    Raises:
        ValueError: Its layers do not come to the attention over pages.
    """
    on_cpu = model.device.type == "cpu"
    dtype: Any = str(model.dtype).removeprefix("torch.")
    return KvLayout(
        layers=layers_of(model, form),
        page_size=PAGE_SIZE if on_cpu else min(PAGE_SIZE, DEVICE_PAGE_SIZE),
        dtype=dtype,
    )


def why_not_attended(layout: KvLayout) -> str | None:
    """Why attention over pages cannot read a layout, or None when it can."""
    sizes = {size for layer in layout.layers for size in (layer.head_dim, layer.value_dim)}
    odd = sorted(size for size in sizes if size % 16 != 0)
    return f"its head size of {odd[0]} is no multiple of 16" if odd else None
