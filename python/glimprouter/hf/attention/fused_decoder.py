"""Decoder layers whose additions of the residual run with what comes behind or before them.

Between attention and MLP the residual is added and normed: one operation. Behind the MLP it meets
what the last product gives: that product adds it. What a layer does otherwise is found by trying
its own code on stand-ins for its children.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from glimprouter.hf.attention.fused_mlp import FusedMlp
from glimprouter.hf.attention.fused_norms import FoundNorm
from glimprouter.hf.attention.fused_operations import (
    Calling,
    DeviceOperations,
    is_plain,
    is_unwatched,
    random_rows,
    twin_of,
)

_NORMS = ("input_layernorm", "post_attention_layernorm")
_TRIAL_SCALES = (1.0, 300.0)  # of the rows of a trial: also so large that a limit shows
_ATTENTION, _MLP = "self_attn", "mlp"
_HIDDEN = "hidden_states"

Forward = Callable[..., Any]


def _defaults_of(forward: Any) -> dict[str, Any] | None:
    """What a layer hands its attention when it is given nothing; None for code of another kind."""
    parameters = list(inspect.signature(forward).parameters.values())
    if len(parameters) < 2 or parameters[1].name != _HIDDEN:
        return None
    named = [each for each in parameters[2:] if each.kind is not inspect.Parameter.VAR_KEYWORD]
    if any(each.default is inspect.Parameter.empty for each in named):
        return None
    return {each.name: each.default for each in named}


def _fused_layer(
    module: torch.nn.Module,
    norm: FoundNorm,
    defaults: Mapping[str, Any],
    operations: DeviceOperations,
    mlps: Mapping[int, FusedMlp],
) -> Forward:
    own, children = type(module).forward, module._modules

    def forward(*arguments: Any, **options: Any) -> Any:
        first, second = (children[name] for name in _NORMS)
        attention, mlp = children[_ATTENTION], children[_MLP]
        if len(arguments) != 1 or second is not norm.module or not is_plain(norm.module):
            return own(module, *arguments, **options)
        hidden = arguments[0]
        assert first is not None
        assert attention is not None
        assert mlp is not None
        attended = attention(hidden_states=first(hidden), **{**defaults, **options})[0]
        present = norm.present()
        if (
            operations.takes(hidden, attended)
            and operations.takes(hidden, present.weight)
            and hidden.shape == attended.shape
            and hidden.dim() <= 4
            and hidden.is_contiguous()
            and attended.is_contiguous()
        ):
            total, normed = operations.add_norm(hidden, attended, present)
        else:
            total = hidden + attended
            normed = second(total)
        fused = mlps.get(id(mlp))
        if fused is not None and is_unwatched(mlp):
            return fused.added(normed, total)
        return total + mlp(normed)

    return forward


def find_layer(
    module: torch.nn.Module,
    norms: Mapping[int, FoundNorm],
    mlps: Mapping[int, FusedMlp],
    operations: Any,
    dtype: torch.dtype,
    width: int,
) -> Forward | None:
    """The forward of a decoder layer with its additions fused, or None where it is no such layer.

    Args:
        module: Any.
        norms: The norms of the model by the identity of their module.
        mlps: Its gated MLPs, likewise.
        operations: Of the model's device.
        dtype: Of the model.
        width: Of the hidden states.
    """
    children = module._modules
    if not isinstance(operations, DeviceOperations) or "forward" in module.__dict__:
        return None
    found = [norms.get(id(children.get(name))) for name in _NORMS]
    if found[0] is None or found[1] is None or not is_plain(found[1].module):
        return None
    if set(children) != {*_NORMS, _ATTENTION, _MLP}:
        return None  # somebody may watch what else there is
    if children[_ATTENTION] is None or children[_MLP] is None:
        return None
    try:
        defaults = _defaults_of(type(module).forward)
        if defaults is None:
            return None
        for options in ({}, {name: object() for name in (*defaults, "more")}):
            place = module, (found[0], found[1]), defaults, operations, options
            for scale in _TRIAL_SCALES:
                if not _same(*place, scale * random_rows(operations, dtype, 1, 3, width)):
                    return None
    except Exception:  # whatever a layer of another kind does with stand-ins
        return None
    return _fused_layer(module, found[1], defaults, operations, mlps)


def _same(
    module: torch.nn.Module,
    norms: tuple[FoundNorm, FoundNorm],
    defaults: Mapping[str, Any],
    operations: DeviceOperations,
    options: Mapping[str, Any],
    hidden: torch.Tensor,
) -> bool:
    """Whether a layer's own code hands on the same and gives the same, bit by bit."""
    seen: list[list[Any]] = []

    def attention(hidden_states: torch.Tensor, **given: Any) -> tuple[torch.Tensor, None]:
        seen[-1] += [hidden_states, *(item for pair in sorted(given.items()) for item in pair)]
        return (1.5 * hidden_states).roll(1, -1).contiguous(), None

    def mlp(normed: torch.Tensor) -> torch.Tensor:
        seen[-1].append(normed)
        return (0.7 * normed).roll(-2, -1)

    standing: dict[str, torch.nn.Module] = {_ATTENTION: Calling(attention), _MLP: Calling(mlp)}
    computed = {
        name: Calling(norm.fused(operations)) for name, norm in zip(_NORMS, norms, strict=True)
    }
    results = []
    for fuses in (False, True):
        seen.append([])
        if fuses:
            twin = twin_of(module, {**standing, _NORMS[0]: computed[_NORMS[0]]})
            forward = _fused_layer(twin, norms[1], defaults, operations, {})
            results.append(forward(hidden, **options))
        else:
            twin = twin_of(module, {**standing, **computed})
            results.append(type(module).forward(twin, hidden, **options))
    if not all(isinstance(result, torch.Tensor) for result in results):
        return False
    pairs = zip([*seen[0], results[0]], [*seen[1], results[1]], strict=True)
    return len(seen[0]) == len(seen[1]) and all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one is other or one == other
        for one, other in pairs
    )
