"""RMS norms as one operation: found by what they compute."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from glimprouter.hf.attention.fused_operations import (
    Norm,
    NormForm,
    Operations,
    agrees,
    random_rows,
)

# Root mean squares of the rows that a norm is tried on: some show epsilon, some do not.
_TRIAL_SIZES = (1e-3, 1.0, 100.0)
_TRIAL_TOKENS = 3

Forward = Callable[..., Any]


class FoundNorm(NamedTuple):
    """A module that is a norm.

    Attributes:
        module: It.
        epsilon: Name of the attribute.
        form: How it rounds.
    """

    module: torch.nn.Module
    epsilon: str
    form: NormForm

    def present(self) -> Norm:
        """Weight and epsilon as they are now: the user may change them."""
        weight = self.module._parameters["weight"]
        assert weight is not None
        return Norm(weight, self.module.__dict__[self.epsilon], self.form)

    def fused(self, operations: Operations) -> Forward:
        """Its forward as one operation, which reads weight and epsilon at each call."""
        module, epsilon, form = self
        state, parameters, own = module.__dict__, module._parameters, type(module).forward

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            weight = parameters["weight"]
            assert weight is not None
            if not (operations.takes(hidden, weight) and hidden.dim() <= 4):
                result: torch.Tensor = own(module, hidden)
                return result
            return operations.norm(hidden, weight, state[epsilon], form)

        return forward


def _weight_of(module: torch.nn.Module, operations: Operations) -> torch.Tensor | None:
    """The weight ``[size]`` of what may be a norm: a module that has nothing else."""
    weight = module._parameters.get("weight")
    others = [own for name, own in module._parameters.items() if name != "weight"]
    if weight is None or any(own is not None for own in others):
        return None
    if module._buffers or module._modules or weight.dim() != 1:
        return None
    return weight if operations.takes(weight, weight) else None


def _computes(found: FoundNorm, operations: Operations) -> bool:
    """Whether a norm and the fused operation give the same, with its weight and with another."""
    weight = found.module._parameters["weight"]
    assert weight is not None
    size = len(weight)
    other = random_rows(operations, weight.dtype, size, seed=1)
    # Behind the weight: a kernel may read its weights before the operation ahead of it has ended.
    rows = random_rows(operations, torch.float32, 1, _TRIAL_TOKENS, size)
    rows = torch.cat([scale * rows for scale in _TRIAL_SIZES], 1).to(weight.dtype)
    for tried in (weight, torch.nn.Parameter(other, requires_grad=False)):
        # A twin with a weight of its own: a call of the module itself would fire the user's hooks.
        twin = copy.copy(found.module)
        twin._parameters = {"weight": tried}
        got = found._replace(module=twin).fused(operations)(rows)
        if not agrees(got, type(twin).forward(twin, rows)):
            return False
    return True


def find_norm(module: torch.nn.Module, operations: Operations) -> FoundNorm | None:
    """What norm a module is, or None when it is none."""
    weight = _weight_of(module, operations)
    if weight is None or "forward" in module.__dict__:
        return None
    for name, value in module.__dict__.items():
        if not isinstance(value, float) or not 0.0 <= value < 1.0:
            continue
        for form in operations.forms(weight.dtype):
            found = FoundNorm(module, name, form)
            try:
                if _computes(found, operations):
                    return found
            except Exception:  # whatever the code of a module that is no norm does with the rows
                return None
    return None
