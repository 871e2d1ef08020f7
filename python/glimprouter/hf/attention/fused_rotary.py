"""Rotary embeddings as one operation, with the norms of queries and keys where they come before.

The embedding is a function that attention modules call by a global name: a module gets the code of
its class with globals of its own, equal but for that name. Norms are postponed to the rotation on a
twin of the module, made for the call, whose norms do nothing.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import torch

from glimprouter.hf.attention.fused_norms import FoundNorm
from glimprouter.hf.attention.fused_operations import (
    Calling,
    Operations,
    is_plain,
    random_rows,
    twin_of,
)

_ROTARY = "apply_rotary_pos_emb"  # what attention modules of transformers call by this global name
_ATTENTION = "ALL_ATTENTION_FUNCTIONS"  # what they take their attention function from
_NORMS = ("q_norm", "k_norm")
_TRIAL_TOKENS = 3
_TRIAL_HEAD_SIZE = 16
_LARGEST_HEAD = 512  # on a device

Forward = Callable[..., Any]
# Of a module whose norms are postponed: those of queries and keys.
Postponed = tuple[FoundNorm, FoundNorm]


def _fused_rotary(own: Forward, operations: Operations, norms: Postponed | None = None) -> Forward:
    """The rotary embedding of queries and keys as one operation, and norms before it."""

    def rotate(
        queries: torch.Tensor,
        keys: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        plain = not arguments and not options and queries.dim() == 4 and cosine.dim() == 3
        size = queries.shape[-1]
        # Some models turn a part of each head.
        plain = plain and size == cosine.shape[-1] and size <= _LARGEST_HEAD
        plain = plain and queries.dtype is cosine.dtype  # some turn in float32 what is narrow
        if plain and operations.takes(queries, keys) and operations.takes(cosine, sine):
            if norms is None:
                return operations.rotate(queries, keys, cosine, sine)
            present = norms[0].present(), norms[1].present()
            if all(operations.takes(queries, norm.weight) for norm in present):
                return operations.rotate(queries, keys, cosine, sine, present)
        if norms is not None:
            queries, keys = (
                norm.fused(operations)(heads)
                for norm, heads in zip(norms, (queries, keys), strict=True)
            )
        return own(queries, keys, cosine, sine, *arguments, **options)

    return rotate


def _rotates_halves(own: Forward, operations: Operations, dtype: torch.dtype) -> bool:
    """Whether a model's rotary embedding is the usual one: halves, all elements, the same bits."""

    def random(*shape: int, seed: int) -> torch.Tensor:
        rows: torch.Tensor = random_rows(operations, dtype, 1, _TRIAL_TOKENS, *shape, seed=seed)
        return rows

    queries = random(4, _TRIAL_HEAD_SIZE, seed=0).transpose(1, 2)
    keys = random(2, _TRIAL_HEAD_SIZE, seed=1).transpose(1, 2)
    # The halves of the angles differ here: an embedding that reads but one of them is another.
    angles = random(_TRIAL_HEAD_SIZE, seed=2), random(_TRIAL_HEAD_SIZE, seed=3)
    try:
        want = own(queries, keys, *angles)
        got = _fused_rotary(own, operations)(queries, keys, *angles)
        return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    except Exception:  # whatever a function of that name does with other arguments than its own
        return False


def _with_globals(forward: Any, changed: Mapping[str, Any]) -> types.FunctionType:
    """A function's code with some of its globals changed."""
    function = types.FunctionType(
        forward.__code__,
        {**forward.__globals__, **changed},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    function.__kwdefaults__ = forward.__kwdefaults__
    return function


_SILENT = Calling(lambda hidden: hidden)


class FusedRotary:
    """Finds the attention modules of one model whose rotary embedding has a fused form.

    Attributes:
        postponed: Norms that come with the rotation, by the identity of their module.
    """

    def __init__(self, operations: Operations, dtype: torch.dtype) -> None:
        """Tries each function once.

        Args:
            operations: Of the model's device.
            dtype: Of the model.
        """
        self.postponed: set[int] = set()
        self._operations = operations
        self._dtype = dtype
        self._usual: dict[int, bool] = {}  # embeddings by identity: whether it is one
        self._rotating: dict[int, types.FunctionType] = {}  # by the identity of a class's forward

    def find(
        self, module: torch.nn.Module, norms: Mapping[int, FoundNorm], hidden_size: int
    ) -> Forward | None:
        """A module's forward with a fused rotary embedding, or None where it has no such call.

        Args:
            module: Any.
            norms: The norms of the model by the identity of their module.
            hidden_size: Of what comes to an attention module.
        """
        forward: Any = type(module).forward
        if not isinstance(forward, types.FunctionType) or _ROTARY not in forward.__code__.co_names:
            return None
        own = forward.__globals__.get(_ROTARY)
        if "forward" in module.__dict__ or not callable(own):
            return None
        if id(own) not in self._usual:
            self._usual[id(own)] = _rotates_halves(own, self._operations, self._dtype)
        if not self._usual[id(own)]:
            return None
        if id(forward) not in self._rotating:
            fused = _fused_rotary(own, self._operations)
            self._rotating[id(forward)] = _with_globals(forward, {_ROTARY: fused})
        rotating = self._rotating[id(forward)]
        found = [norms.get(id(module._modules.get(name))) for name in _NORMS]
        if self._operations.activates and found[0] is not None and found[1] is not None:
            pair = found[0], found[1]
            later = _with_globals(forward, {_ROTARY: _fused_rotary(own, self._operations, pair)})
            if self._postpones(module, rotating, later, pair, hidden_size):
                self.postponed.update(id(norm.module) for norm in pair)
                return _postponing(module, rotating, later, pair)
        return types.MethodType(rotating, module)

    def _postpones(
        self,
        module: torch.nn.Module,
        rotating: types.FunctionType,
        later: types.FunctionType,
        norms: Postponed,
        hidden_size: int,
    ) -> bool:
        """Whether nothing but the rotation sees what the norms give: attention gets the same."""
        names = rotating.__code__.co_names
        if _ATTENTION not in names or not all(map(is_plain, module.modules())):
            return False
        now: dict[str, torch.nn.Module] = {
            name: Calling(norm.fused(self._operations))
            for name, norm in zip(_NORMS, norms, strict=True)
        }
        try:
            want = self._attended(module, rotating, now, hidden_size)
            got = self._attended(module, later, dict.fromkeys(_NORMS, _SILENT), hidden_size)
        except Exception:  # whatever attention of another kind wants of its caller
            return False
        return len(got) == len(want) and all(map(torch.equal, got, want))

    def _attended(
        self,
        module: torch.nn.Module,
        forward: Any,
        children: Mapping[str, torch.nn.Module],
        hidden_size: int,
    ) -> list[torch.Tensor]:
        """Every tensor that an attention function gets of a module, and the module's result."""
        seen: list[torch.Tensor] = []

        def attention(_: Any, *arguments: Any, **options: Any) -> Any:
            seen.extend(
                value
                for value in (*arguments, *options.values())
                if isinstance(value, torch.Tensor)
            )
            return arguments[0].transpose(1, 2).contiguous(), None

        hidden = random_rows(self._operations, self._dtype, 1, _TRIAL_TOKENS, hidden_size)
        size = len(module._modules["q_norm"]._parameters["weight"])  # type: ignore
        angles = random_rows(self._operations, self._dtype, 2, 1, _TRIAL_TOKENS, size, seed=1)
        functions = types.SimpleNamespace(get_interface=lambda *_: attention)
        tried = _with_globals(forward, {_ATTENTION: functions})
        result = tried(
            twin_of(module, children),
            hidden_states=hidden,
            position_embeddings=tuple(angles),
            attention_mask=None,
        )
        return [*seen, result[0]]


def _postponing(
    module: torch.nn.Module,
    rotating: types.FunctionType,
    later: types.FunctionType,
    norms: Postponed,
) -> Forward:
    """The forward of a module whose norms wait for the rotation.

    Not where somebody watches them, or has put others in their place.
    """
    silent = dict.fromkeys(_NORMS, _SILENT)
    found = tuple(norm.module for norm in norms)

    def forward(*arguments: Any, **options: Any) -> Any:
        present = tuple(module._modules[name] for name in _NORMS)
        same = all(own is norm for own, norm in zip(present, found, strict=True))
        if same and all(map(is_plain, found)):
            return later(twin_of(module, silent), *arguments, **options)
        return rotating(module, *arguments, **options)

    return forward
