"""The activation of gated MLPs as one operation: ``down(activation(gate(x)) * up(x))``."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch

from glimprouter.hf.attention.fused_operations import (
    ACTIVATIONS,
    Operations,
    agrees,
    is_plain,
    is_unwatched,
    random_rows,
)
from glimprouter.hf.attention.fused_products import FewRowProducts, is_linear

# The first two read the same rows.
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_ACTIVATION = "act_fn"
_TRIAL_SIZE = 512
# Of what the gate, and what it lets through, are in a trial: also so large that a limit shows.
_TRIAL_SCALES = ((3.0, 1.0), (3000.0, 0.01), (0.5, 1000.0))


class FusedMlp:
    """The forward of an MLP with its activation as one operation, unless somebody watches that."""

    ours = True

    def __init__(
        self,
        module: torch.nn.Module,
        activation: str,
        operations: Operations,
        products: FewRowProducts | None = None,
    ) -> None:
        """For an MLP that computes so.

        Args:
            module: It.
            activation: One of :data:`ACTIVATIONS`.
            operations: Of the model's device.
            products: That have learnt its gate and what it lets through; None: torch computes them.
        """
        self._module = module
        self._activation = activation
        self._found = _activation_of(module)
        self._operations = operations
        self._products = products

    def __call__(self, hidden: torch.Tensor) -> Any:
        """What the MLP's class computes."""
        if (gated := self._gated(hidden)) is None:
            return type(self._module).forward(self._module, hidden)
        return self._child(2)(gated)

    def added(self, hidden: torch.Tensor, residual: torch.Tensor) -> Any:
        """The same, added to a residual: by the last product where that is one of a few rows."""
        if (gated := self._gated(hidden)) is None:
            return residual + type(self._module).forward(self._module, hidden)
        down, products = self._child(2), self._products
        if (
            products is not None
            and is_linear(down)
            and is_unwatched(down)
            and products.takes(gated, (down,))
            and residual.shape == (*gated.shape[:-1], down.weight.shape[0])
            and residual.dtype is gated.dtype
            and residual.is_contiguous()
        ):
            return products.multiply(gated, (down,), residual)[0]
        return residual + down(gated)

    def _child(self, index: int) -> Any:
        return self._module._modules[_PROJECTIONS[index]]

    def _gated(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """What the last projection gets; None where the activation is watched, or another one."""
        operations, products = self._operations, self._products
        applied = self._module._modules.get(_ACTIVATION)
        if applied is not None and not is_plain(applied):
            return None
        if _activation_of(self._module) is not self._found:
            return None
        gate_proj, up_proj = self._child(0), self._child(1)
        pair = cast(torch.nn.Linear, gate_proj), cast(torch.nn.Linear, up_proj)
        if (
            products is not None
            and all(is_linear(own) and is_plain(own) for own in pair)
            and products.takes(hidden, pair)
        ):
            return products.gated(hidden, pair[0], pair[1], self._activation)
        gate, up = gate_proj(hidden), up_proj(hidden)
        if (
            operations.takes(gate, up)
            and gate.shape == up.shape
            and gate.dim() <= 4
            and gate.is_contiguous()
            and up.is_contiguous()
        ):
            return operations.activate(gate, up, self._activation)
        result: torch.Tensor = getattr(self._module, _ACTIVATION)(gate) * up
        return result


def _activation_of(module: torch.nn.Module) -> Any:
    """What an MLP applies to its gate: a module, or an attribute; None where it has none."""
    return module._modules.get(_ACTIVATION, module.__dict__.get(_ACTIVATION))


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
) -> FusedMlp | None:
    """The forward of a gated MLP with its activation fused, or None where a module is no such MLP.

    It is tried on a twin without projections: what their results become is what matters.
    """
    children = module._modules
    activation = _activation_of(module)
    if not operations.activates or not callable(activation) or "forward" in module.__dict__:
        return None
    if any(children.get(name) is None for name in _PROJECTIONS):
        return None
    if not set(children) <= {*_PROJECTIONS, _ACTIVATION}:
        return None  # somebody may watch what else there is
    if isinstance(activation, torch.nn.Module) and not all(map(is_plain, activation.modules())):
        return None
    hidden = random_rows(operations, dtype, 1, 3, _TRIAL_SIZE)
    try:
        for name in ACTIVATIONS:
            if all(_computes(module, name, operations, hidden, own) for own in _TRIAL_SCALES):
                served = products and products.learn(*map(children.get, _PROJECTIONS[:2]))
                return FusedMlp(module, name, operations, products if served else None)
    except Exception:  # whatever an MLP of another kind does with the rows
        return None
    return None


def _computes(
    module: torch.nn.Module,
    activation: str,
    operations: Operations,
    hidden: torch.Tensor,
    scales: tuple[float, float],
) -> bool:
    """Whether an MLP applies that activation, and nothing else, to such sizes."""
    twin = copy.copy(module)
    # Each projection moves the elements otherwise, so that another order of them shows.
    stand_ins = (_Scaled(scales[0], 0), _Scaled(scales[1], 5), _Scaled(0.5, -3))
    twin._modules = {**module._modules, **dict(zip(_PROJECTIONS, stand_ins, strict=True))}
    want = type(twin).forward(twin, hidden)
    return agrees(FusedMlp(twin, activation, operations)(hidden), want)
