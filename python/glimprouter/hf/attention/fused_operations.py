"""The operations of fused layers on the CPU and on devices, and what counts as a model's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.modules import module as torch_module

from glimprouter import _C
from glimprouter.hf.pair.devices import torch_device

NARROW = (torch.bfloat16, torch.float16)
ACTIVATIONS = ("silu", "gelu_tanh")
# Of trials in float32, against the largest result: a few units in the last place.
_TOLERANCE = 1e-6
# Of trials in the narrow types. Sums in another order move a float32 by a unit or two, which turns
# a rounding to 8 or 11 bits once in thousands; one in another place differs in a third of all.
_MOST_DIFFERING = 1 / 64
_MOST_UNITS = 4.0  # of half the last place, where it is largest


class NormForm(NamedTuple):
    """How a norm rounds.

    Attributes:
        offset: What is added to the weight: Gemma stores its difference from 1.
        in_type: Whether the normed value is rounded before it meets the weight; else all is
            computed in float32 and rounded once.
    """

    offset: float
    in_type: bool


class Norm(NamedTuple):
    """A norm that comes before something else.

    Attributes:
        weight: ``[size]``.
        epsilon: Added to the mean of squares.
        form: How it rounds.
    """

    weight: torch.Tensor
    epsilon: float
    form: NormForm


def _empty(like: torch.Tensor) -> torch.Tensor:
    """Contiguous and of the same shape; the first way is the faster one by a microsecond."""
    return torch.empty_like(like) if like.is_contiguous() else like.new_empty(like.shape)


class Operations(Protocol):
    """What a fused layer calls.

    Attributes:
        forms: Of norms, that are worth a try.
        activates: Whether there is :meth:`activate`, and :meth:`rotate` takes norms.
        home: Where it computes.
    """

    activates: bool
    home: torch.device

    def forms(self, dtype: torch.dtype) -> tuple[NormForm, ...]:
        """Forms of norms that are worth a try."""

    def takes(self, first: torch.Tensor, second: torch.Tensor) -> bool:
        """Whether two tensors are what the operations take."""

    def norm(
        self, hidden: torch.Tensor, weight: torch.Tensor, epsilon: float, form: NormForm
    ) -> torch.Tensor:
        """The rows of ``hidden``, normed."""

    def rotate(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        norms: tuple[Norm, Norm] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys ``[B, heads, T, D]`` turned by ``[1 or B, T, D]``, normed before."""

    def activate(self, gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
        """One of :data:`ACTIVATIONS` of ``gate``, times ``up``."""


class HostOperations:
    """On the CPU, in float32: in the narrow types the model's own roundings are kept."""

    activates = False
    home = torch.device("cpu")

    def forms(self, dtype: torch.dtype) -> tuple[NormForm, ...]:
        """Both places of rounding are the same in float32."""
        return (NormForm(0.0, False), NormForm(1.0, False))

    def takes(self, first: torch.Tensor, second: torch.Tensor) -> bool:
        """Spelled out, for it runs at each call."""
        return (
            first.dtype is torch.float32
            and second.dtype is torch.float32
            and first.is_cpu
            and second.is_cpu
        )

    def norm(
        self, hidden: torch.Tensor, weight: torch.Tensor, epsilon: float, form: NormForm
    ) -> torch.Tensor:
        """As one pass over the rows."""
        out = _empty(hidden)
        _C.rms_norm(hidden, weight, epsilon, form.offset, out)
        return out

    def rotate(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        norms: tuple[Norm, Norm] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both in one call; norms come separately here."""
        assert norms is None
        queries_out, keys_out = _empty(queries), _empty(keys)
        _C.rotate_heads(queries, keys, cosine, sine, queries_out, keys_out)
        return queries_out, keys_out

    def activate(self, gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
        """There is none, as ``activates`` says: whoever asks all the same has not looked."""
        raise NotImplementedError("activations are not fused on the CPU")


class DeviceOperations:
    """On a device, one launch each, in float32, bfloat16 and float16."""

    activates = True

    def __init__(self, device: str) -> None:
        """For tensors of one device.

        Args:
            device: The engine's name of it, such as ``"cuda:0"``.
        """
        self.home = torch.device(torch_device(device))
        self._own = _C.DeviceLayers(device)

    def forms(self, dtype: torch.dtype) -> tuple[NormForm, ...]:
        """In the narrow types a value may be rounded before the weight, or behind it."""
        behind = (NormForm(0.0, False), NormForm(1.0, False))
        return (NormForm(0.0, True), *behind) if dtype in NARROW else behind

    def takes(self, first: torch.Tensor, second: torch.Tensor) -> bool:
        """Of one type and on the device, with elements side by side."""
        return (
            first.dtype is second.dtype
            and (first.dtype is torch.float32 or first.dtype in NARROW)
            and first.device == self.home
            and second.device == self.home
            and first.stride(-1) == 1
            and second.stride(-1) == 1
        )

    def norm(
        self, hidden: torch.Tensor, weight: torch.Tensor, epsilon: float, form: NormForm
    ) -> torch.Tensor:
        """One launch."""
        out = _empty(hidden)
        self._own.norm(hidden, weight, epsilon, form.offset, form.in_type, out)
        return out

    def rotate(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        norms: tuple[Norm, Norm] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One launch for both, with their norms."""
        queries_out, keys_out = _empty(queries), _empty(keys)
        own = (None, None) if norms is None else [(n.weight, n.epsilon, *n.form) for n in norms]
        self._own.rotate(queries, keys, cosine, sine, queries_out, keys_out, *own)
        return queries_out, keys_out

    def activate(self, gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
        """One launch."""
        out = torch.empty_like(gate)
        self._own.activate(gate, up, activation, out)
        return out

    def add_norm(
        self, hidden: torch.Tensor, added: torch.Tensor, norm: Norm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of two, and its norm, one launch."""
        total, out = torch.empty_like(hidden), torch.empty_like(hidden)
        self._own.add_norm(hidden, added, norm.weight, norm.epsilon, *norm.form, total, out)
        return total, out

    def multiply(
        self,
        hidden: torch.Tensor,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
        activation: str = "",
        added: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """A few rows times each of up to three matrices, one launch.

        With an activation, that of the first result times the second. ``added`` is added to the
        first result.
        """
        kept = weights[:1] if activation else weights
        outs = [hidden.new_empty((*hidden.shape[:-1], weight.shape[0])) for weight in kept]
        self._own.multiply(hidden, tuple(weights), tuple(biases), activation, added, tuple(outs))
        return outs


def operations_on(device: str) -> Operations:
    """Those of a device, by the engine's name of it."""
    return HostOperations() if device == "cpu" else DeviceOperations(device)


def agrees(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Whether two results are the same but for the order of a sum."""
    if got.shape != want.shape or got.dtype is not want.dtype:
        return False
    exact, error = want.double(), (got.double() - want.double()).abs()
    floor = _TOLERANCE * exact.abs().max()
    if want.dtype not in NARROW:
        return bool((error <= floor).all())
    most = _MOST_UNITS * torch.finfo(want.dtype).eps / 2 * exact.abs() + floor
    differing = (error > floor).double().mean()
    return bool((error <= most).all() & (differing <= _MOST_DIFFERING))


def is_plain(module: torch.nn.Module) -> bool:
    """Whether calling a module is calling the forward of its class: no hooks, nothing put on it."""
    return "forward" not in module.__dict__ and is_unwatched(module)


def is_unwatched(module: torch.nn.Module) -> bool:
    """Whether nobody would miss a call: no hooks, and no forward on the instance but one of ours.

    Those of ours that compute what the class does have a true attribute ``ours``.
    """
    own = module.__dict__.get("forward")
    return not (
        (own is not None and not getattr(own, "ours", False))
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]
    )


class Calling(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Calls it.

        Args:
            function: Any.
        """
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """What the function gives."""
        return self.function(*arguments, **options)


def twin_of(module: torch.nn.Module, children: Mapping[str, torch.nn.Module]) -> torch.nn.Module:
    """A module as it is now, but for some of its children and what was put on it."""
    twin: torch.nn.Module = object.__new__(type(module))
    twin.__dict__ = {**module.__dict__, "_modules": {**module._modules, **children}}
    twin.__dict__.pop("forward", None)
    return twin


def random_rows(operations: Operations, dtype: torch.dtype, *shape: int, seed: int = 0) -> Any:
    """Normal numbers for a trial, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(operations.home, dtype)
