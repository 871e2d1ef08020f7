"""Products of a few rows with weight matrices: one launch for all that read the same rows.

A decode pass waits for its weights. Here they are read once, where ``torch.nn.Linear`` keeps them,
by one launch for queries, keys and values, and one for a gate and what it lets through. A row has
the same bits in any batch of up to :data:`MOST_ROWS`, which torch does not promise.

Only for exactly ``torch.nn.Linear`` with plain weights: adapters, quantized layers and whatever is
derived from it keep their own code. A product sums in another order than torch's, so what is
tried is that its error against float64 is not larger than that of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from glimprouter.hf.attention.fused_operations import (
    ACTIVATIONS,
    NARROW,
    DeviceOperations,
    random_rows,
)

MOST_ROWS = 16
_ELEMENTS = 8  # rows of weights are read by so many elements
_ALIGNMENT = 16  # bytes
# Of a trial: rows of weights that are compared, and how much larger our error may be: both are
# mostly the rounding of the result, the same for both.
_TRIAL_WEIGHTS = 256
_TRIAL_ALONE = 3, 12  # rows that come alone, too: one of each eight that are computed together
_MOST_ERROR = 1.25

Forward = Callable[..., Any]
Linears = Sequence[torch.nn.Linear]


def is_linear(module: torch.nn.Module | None) -> bool:
    """Whether a module is exactly a linear layer, with weights that are what they look like."""
    if type(module) is not torch.nn.Linear:
        return False
    plain = torch.nn.Parameter, torch.Tensor
    return type(module.weight) in plain and (module.bias is None or type(module.bias) in plain)


def has_pre_hooks(module: torch.nn.Module) -> bool:
    """Whether somebody sees, or changes, what a module gets: its weight may be made there, too."""
    return bool(module._forward_pre_hooks or torch_module._global_forward_pre_hooks)


def _shape(linear: torch.nn.Linear) -> tuple[Any, ...]:
    """What the arithmetic of a linear layer depends on."""
    return *linear.weight.shape, linear.bias is not None


class FewRowProducts:
    """The products of one model that are computed so, of passes with a few rows."""

    def __init__(self, operations: DeviceOperations, dtype: torch.dtype) -> None:
        """Nothing is tried yet.

        Args:
            operations: Of the model's device.
            dtype: Of the model.
        """
        self._operations = operations
        self._dtype = dtype
        self._tried: dict[tuple[Any, ...], bool] = {}

    def learn(self, *modules: torch.nn.Module | None) -> bool:
        """Whether linear layers that read the same rows are served; each shape is tried once."""
        if not all(map(is_linear, modules)):
            return False
        linears: list[torch.nn.Linear] = list(modules)  # type: ignore[arg-type]
        if len({linear.weight.shape[1] for linear in linears}) > 1:
            return False
        if not all(self._served(linear) for linear in linears):
            return False
        if not all(self._once(_shape(linear), self._agrees, linear) for linear in linears):
            return False
        together = tuple(map(_shape, linears))
        return len(linears) == 1 or self._once(together, self._same_together, *linears)

    def takes(self, hidden: torch.Tensor, linears: Linears) -> bool:
        """Whether rows and weights are what the operation takes: looked at before each call."""
        size = hidden.shape[-1]
        return (
            0 < hidden.numel() <= MOST_ROWS * size
            and hidden.dtype is self._dtype
            and hidden.dim() <= 4
            and hidden.device == self._operations.home
            and hidden.is_contiguous()
            and hidden.data_ptr() % _ALIGNMENT == 0
            and all(
                linear.weight.shape[1] == size
                and self._served(linear)
                and self._tried.get(_shape(linear), False)
                for linear in linears
            )
        )

    def multiply(
        self, hidden: torch.Tensor, linears: Linears, added: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """What each of up to three gives for the same rows; something added to the first's."""
        weights, biases = ([getattr(own, name) for own in linears] for name in ("weight", "bias"))
        return self._operations.multiply(hidden, weights, biases, added=added)

    def gated(
        self, hidden: torch.Tensor, gate: torch.nn.Linear, up: torch.nn.Linear, activation: str
    ) -> torch.Tensor:
        """The activation of what the first gives, times what the second gives."""
        return self._operations.multiply(
            hidden, [gate.weight, up.weight], [gate.bias, up.bias], activation
        )[0]

    def alone(self, module: torch.nn.Linear) -> Forward:
        """The forward of one layer."""
        own = type(module).forward

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            served = is_linear(module) and not has_pre_hooks(module)
            if served and self.takes(hidden, (module,)):
                return self.multiply(hidden, (module,))[0]
            return own(module, hidden)

        forward.ours = True  # type: ignore[attr-defined]
        return forward

    def _served(self, linear: torch.nn.Linear) -> bool:
        weight, bias, home = linear.weight, linear.bias, self._operations.home
        return (
            weight.dtype is self._dtype
            and weight.device == home
            and weight.is_contiguous()
            and weight.shape[1] % _ELEMENTS == 0
            and weight.data_ptr() % _ALIGNMENT == 0
            and (
                bias is None
                or (bias.dtype is self._dtype and bias.device == home and bias.is_contiguous())
            )
        )

    def _once(self, key: tuple[Any, ...], trial: Callable[..., bool], *linears: Any) -> bool:
        if key not in self._tried:
            try:
                self._tried[key] = trial(*linears)
            except Exception:  # no memory for a trial, or a torch without a way to its stream
                self._tried[key] = False
        return self._tried[key]

    def _rows(self, count: int, size: int) -> torch.Tensor:
        rows: torch.Tensor = random_rows(self._operations, self._dtype, count, size, seed=count)
        return rows

    def _agrees(self, linear: torch.nn.Linear) -> bool:
        """Whether the error of one product is that of torch, and a row's bits are its own."""
        rows, size = linear.weight.shape
        hidden = self._rows(MOST_ROWS, size)
        chosen = torch.linspace(0, rows - 1, min(rows, _TRIAL_WEIGHTS)).long().to(hidden.device)
        exact = hidden.double() @ linear.weight[chosen].double().T
        if linear.bias is not None:
            exact += linear.bias[chosen].double()
        ours = self.multiply(hidden, (linear,))[0]
        theirs = torch.nn.functional.linear(hidden, linear.weight, linear.bias)

        def error(result: torch.Tensor) -> torch.Tensor:
            return (result[:, chosen].double() - exact).square().mean().sqrt()

        least = 1e-3 * torch.finfo(self._dtype).eps * exact.square().mean().sqrt()
        same = all(
            torch.equal(self.multiply(hidden[i : i + 1].clone(), (linear,))[0], ours[i : i + 1])
            for i in _TRIAL_ALONE
        )
        return same and bool(error(ours) <= _MOST_ERROR * error(theirs) + least)

    def _same_together(self, *linears: torch.nn.Linear) -> bool:
        """Whether several in one launch, and as a gate, give the bits that they give alone."""
        hidden = self._rows(3, linears[0].weight.shape[1])
        alone = [self.multiply(hidden, (linear,))[0] for linear in linears]
        if not all(map(torch.equal, self.multiply(hidden, linears), alone)):
            return False
        if len(linears) != 2 or alone[0].shape != alone[1].shape:
            return True
        return all(
            torch.equal(
                self.gated(hidden, linears[0], linears[1], activation),
                self._operations.activate(alone[0], alone[1], activation),
            )
            for activation in ACTIVATIONS
        )


class ProductGroup:
    """Layers that read the same rows one after another: the first that is asked computes all.

    What the others give waits for them, as long as they are asked with the very same tensor.
    """

    def __init__(self, products: FewRowProducts, members: Linears) -> None:
        """Nothing is computed.

        Args:
            products: That has learnt the members.
            members: In the order in which they are asked.
        """
        self._products = products
        self._members = tuple(members)
        self._waiting: tuple[torch.Tensor, dict[int, torch.Tensor]] | None = None
        self._alone = False  # somebody was not asked: then each is computed when it is

    def forward(self, index: int) -> Forward:
        """The forward of one member."""
        module = self._members[index]
        own = type(module).forward

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            waiting = self._waiting
            if waiting is not None and waiting[0] is hidden and index in waiting[1]:
                result = waiting[1].pop(index)
                if not waiting[1]:
                    self._waiting = None
                return result
            if waiting is not None and waiting[1]:
                self._alone, self._waiting = True, None
            members = (module,) if self._alone else self._members
            served = all(map(is_linear, members)) and not any(map(has_pre_hooks, members))
            if not (served and self._products.takes(hidden, members)):
                return own(module, hidden)
            results = self._products.multiply(hidden, members)
            if self._alone:
                return results[0]
            others = {i: result for i, result in enumerate(results) if i != index}
            self._waiting = hidden, others
            return results[index]

        return forward

    def forget(self) -> None:
        """Drops what nobody came for."""
        self._waiting = None


def products_on(operations: Any, dtype: torch.dtype) -> FewRowProducts | None:
    """For a model of that type, or None where there are none."""
    if not isinstance(operations, DeviceOperations) or dtype not in NARROW:
        return None
    return FewRowProducts(operations, dtype)
