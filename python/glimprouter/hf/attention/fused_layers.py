"""RMS norms and rotary embeddings of a model as one operation each, during our own eager passes.

Between the matrix products of a layer, transformers calls some forty small operations of torch; for
a single token they cost more than the products of a small model. What they compute is found by
trying, and only what gives the model's own results is replaced: a norm by its ``forward``, the
rotary embedding by the function that the attention calls. Everything is put on the instances of the
modules when a pass begins and taken away when it ends, so the user's model, its hooks and all other
code of transformers stay as they are.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from glimprouter import _C

_ROTARY = "apply_rotary_pos_emb"  # what attention modules of transformers call by this global name
# Of the trial of a norm, against the largest result: a few units in the last place.
_NORM_TOLERANCE = 1e-6
# Root mean squares of the rows that a norm is tried on: some show epsilon, some do not.
_TRIAL_SIZES = (1e-3, 1.0, 100.0)
_TRIAL_TOKENS = 3
_TRIAL_HEAD_SIZE = 16

Forward = Callable[..., Any]


def _served(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are what the operations take; spelled out, for it runs at each call."""
    return (
        first.dtype is torch.float32
        and second.dtype is torch.float32
        and first.is_cpu
        and second.is_cpu
    )


def _empty(like: torch.Tensor) -> torch.Tensor:
    """Contiguous and of the same shape; the first way is the faster one by a microsecond."""
    return torch.empty_like(like) if like.is_contiguous() else like.new_empty(like.shape)


def _fused_norm(module: torch.nn.Module, epsilon: str, offset: float) -> Forward:
    """The norm's forward as one operation; ``epsilon`` names the attribute.

    Weight and epsilon are read at each call: the user may change them.
    """
    state, parameters, own = module.__dict__, module._parameters, type(module).forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        weight = parameters["weight"]
        assert weight is not None
        if not (_served(hidden, weight) and hidden.dim() <= 4):
            result: torch.Tensor = own(module, hidden)
            return result
        out = _empty(hidden)
        _C.rms_norm(hidden, weight, state[epsilon], offset, out)
        return out

    return forward


def _fused_rotary(own: Forward) -> Forward:
    """The rotary embedding of queries and keys as one operation."""

    def rotate(
        queries: torch.Tensor,
        keys: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        plain = not arguments and not options and queries.dim() == 4 and cosine.dim() == 3
        whole = queries.shape[-1] == cosine.shape[-1]  # some models turn a part of each head
        if not (plain and whole and _served(queries, keys) and _served(cosine, sine)):
            return own(queries, keys, cosine, sine, *arguments, **options)
        queries_out, keys_out = _empty(queries), _empty(keys)
        _C.rotate_heads(queries, keys, cosine, sine, queries_out, keys_out)
        return queries_out, keys_out

    return rotate


def _weight_of(module: torch.nn.Module) -> torch.Tensor | None:
    """The weight ``[size]`` of what may be a norm: a module that has nothing else."""
    weight = module._parameters.get("weight")
    others = [own for name, own in module._parameters.items() if name != "weight"]
    if weight is None or any(own is not None for own in others):
        return None
    if module._buffers or module._modules or weight.dim() != 1 or not _served(weight, weight):
        return None
    return weight


def _agrees(module: torch.nn.Module, epsilon: str, offset: float) -> bool:
    """Whether a norm and the fused operation give the same, with its weight and with another."""
    weight = module._parameters["weight"]
    assert weight is not None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_TRIAL_TOKENS, len(weight), generator=generator)
    other = torch.randn(len(weight), generator=generator)
    for tried in (weight, torch.nn.Parameter(other, requires_grad=False)):
        # A twin with a weight of its own: a call of the module itself would fire the user's hooks.
        twin = copy.copy(module)
        twin._parameters = {"weight": tried}
        fused = _fused_norm(twin, epsilon, offset)
        for size in _TRIAL_SIZES:
            want = twin.forward((size * rows)[None])
            error = (fused((size * rows)[None]) - want).abs().max()
            if not error <= _NORM_TOLERANCE * want.abs().max():
                return False
    return True


def _try_norm(module: torch.nn.Module) -> Forward | None:
    """The module's forward fused, or None when it is no such norm."""
    if _weight_of(module) is None or "forward" in module.__dict__:
        return None
    for name, value in module.__dict__.items():
        if not isinstance(value, float) or not 0.0 <= value < 1.0:
            continue
        for offset in (0.0, 1.0):  # Gemma stores the difference of the weight from 1
            try:
                if _agrees(module, name, offset):
                    return _fused_norm(module, name, offset)
            except Exception:  # whatever the code of a module that is no norm does with the rows
                return None
    return None


def _rotates_halves(own: Forward) -> bool:
    """Whether a model's rotary embedding is the usual one: halves, all elements, the same bits."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(1, _TRIAL_TOKENS, *shape, generator=generator)

    queries = random(4, _TRIAL_HEAD_SIZE).transpose(1, 2)
    keys = random(2, _TRIAL_HEAD_SIZE).transpose(1, 2)
    # The halves of the angles differ here: an embedding that reads but one of them is another.
    angles = random(_TRIAL_HEAD_SIZE), random(_TRIAL_HEAD_SIZE)
    try:
        want = own(queries, keys, *angles)
        got = _fused_rotary(own)(queries, keys, *angles)
        return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    except Exception:  # whatever a function of that name does with other arguments than its own
        return False


def _try_rotary(
    module: torch.nn.Module, namespaces: dict[int, dict[str, Any] | None]
) -> Forward | None:
    """The module's forward with a fused rotary embedding, or None where it has no such call.

    The forward is the class's own code with globals of its own, equal but for that one name.

    Args:
        module: Any.
        namespaces: By the identity of a file's globals, what was made of them; grows.
    """
    forward = type(module).forward
    if not isinstance(forward, types.FunctionType) or _ROTARY not in forward.__code__.co_names:
        return None
    if "forward" in module.__dict__ or not callable(forward.__globals__.get(_ROTARY)):
        return None
    key = id(forward.__globals__)
    if key not in namespaces:
        own = forward.__globals__[_ROTARY]
        fits = _rotates_halves(own)
        namespaces[key] = {**forward.__globals__, _ROTARY: _fused_rotary(own)} if fits else None
    namespace = namespaces[key]
    if namespace is None:
        return None
    changed = types.FunctionType(
        forward.__code__, namespace, forward.__name__, forward.__defaults__, forward.__closure__
    )
    changed.__kwdefaults__ = forward.__kwdefaults__
    return types.MethodType(changed, module)


class FusedLayers:
    """The norms and rotary embeddings of one model that were found to have a fused form."""

    def __init__(self, model: Any) -> None:
        """Tries every module of a model; takes some milliseconds a layer.

        Args:
            model: A model of transformers, left as it is. Float32 on the CPU, or nothing is found:
                in the narrow types the model's own roundings are kept.
        """
        self._model = model
        self._forwards: list[tuple[dict[str, Any], Forward]] = []
        if model.dtype is not torch.float32 or model.device.type != "cpu":
            return
        namespaces: dict[int, dict[str, Any] | None] = {}
        with torch.inference_mode():
            for module in model.modules():
                forward = _try_norm(module) or _try_rotary(module, namespaces)
                if forward is not None:
                    self._forwards.append((module.__dict__, forward))

    def __len__(self) -> int:
        """Modules that run otherwise in a pass."""
        return len(self._forwards)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The modules compute in their fused form until the block ends, however it ends.

        Not in training mode, and not where somebody else (``accelerate``, say) has put a forward on
        the instance.
        """
        changed: list[tuple[dict[str, Any], Forward]] = []
        try:
            if not self._model.training:
                for state, forward in self._forwards:
                    if "forward" not in state:
                        state["forward"] = forward
                        changed.append((state, forward))
            yield
        finally:
            for state, forward in changed:
                if state.get("forward") is forward:
                    del state["forward"]
