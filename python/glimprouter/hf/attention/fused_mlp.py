"""The activation of gated MLPs as one operation: ``down(activation(gate(x)) * up(x))``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch

from glimprouter.hf.attention.fused_operations import (
    ACTIVATIONS,
    Operations,
    agrees,
    is_plain,
    random_rows,
)
from glimprouter.hf.attention.fused_products import FewRowProducts, watched

# The first two read the same rows.
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_ACTIVATION = "act_fn"
_TRIAL_SIZE = 512

Forward = Callable[..., Any]


def _fused_mlp(
    module: torch.nn.Module,
    activation: str,
    operations: Operations,
    products: FewRowProducts | None = None,
) -> Forward:
    """An MLP's forward with its activation as one operation, unless somebody watches that."""
    own = type(module).forward
    children = module._modules

    def forward(hidden: torch.Tensor) -> Any:
        gate_proj, up_proj, down_proj = (children[name] for name in _PROJECTIONS)
        applied = children.get(_ACTIVATION)
        if gate_proj is None or up_proj is None or down_proj is None:
            return own(module, hidden)
        if applied is not None and not is_plain(applied):
            return own(module, hidden)
        if products is not None and not watched(gate_proj) and not watched(up_proj):
            pair = cast(torch.nn.Linear, gate_proj), cast(torch.nn.Linear, up_proj)
            if products.takes(hidden, pair):
                return down_proj(products.gated(hidden, pair[0], pair[1], activation))
        gate, up = gate_proj(hidden), up_proj(hidden)
        if (
            operations.takes(gate, up)
            and gate.shape == up.shape
            and gate.dim() <= 4
            and gate.is_contiguous()
            and up.is_contiguous()
        ):
            return down_proj(operations.activate(gate, up, activation))
        return down_proj(_activation_of(module)(gate) * up)

    return forward


def _activation_of(module: torch.nn.Module) -> Any:
    return getattr(module, _ACTIVATION)


class _Scaled(torch.nn.Module):
    """Stands for a projection: the elements scaled and moved along."""

    def __init__(self, scale: float, moved: int) -> None:
        super().__init__()
        self.scale, self.moved = scale, moved

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return (self.scale * hidden).roll(self.moved, -1).contiguous()


def find_mlp(
    module: torch.nn.Module,
    operations: Operations,
    dtype: torch.dtype,
    products: FewRowProducts | None = None,
) -> Forward | None:
    """The forward of a gated MLP with its activation fused, or None where a module is no such MLP.

    It is tried on a twin without projections: what their results become is what matters.
    """
    children = module._modules
    activation = children.get(_ACTIVATION, module.__dict__.get(_ACTIVATION))
    if not operations.activates or not callable(activation) or "forward" in module.__dict__:
        return None
    if any(children.get(name) is None for name in _PROJECTIONS):
        return None
    if isinstance(activation, torch.nn.Module) and not all(map(is_plain, activation.modules())):
        return None
    twin = copy.copy(module)
    # One of each, so that a product or an order of its own shows.
    scales = ((3.0, 0), (1.0, 5), (0.5, -3))
    stand_ins = {name: _Scaled(*scaled) for name, scaled in zip(_PROJECTIONS, scales, strict=True)}
    twin._modules = {**children, **stand_ins}
    hidden = random_rows(operations, dtype, 1, 3, _TRIAL_SIZE)
    try:
        want = type(twin).forward(twin, hidden)
        for name in ACTIVATIONS:
            if agrees(_fused_mlp(twin, name, operations)(hidden), want):
                served = products and products.learn(*map(children.get, _PROJECTIONS[:2]))
                return _fused_mlp(module, name, operations, products if served else None)
    except Exception:  # whatever an MLP of another kind does with the rows
        return None
    return None
