"""Which experts a token chose: taken from the model's own pass where rounding would choose.

Two passes that are the same but for rounding differ in a mixture of experts as much as two texts,
once a token's last expert is nearly tied with another: the choice is not continuous. So a trial in
a narrow type lets every pass choose as the model's own did, and compares what is continuous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode

_TOPK = (torch.topk, torch.Tensor.topk)
_AT_ONCE = 1024  # tokens that are compared with all; of a long text the table would not fit


@dataclass(frozen=True)
class _Chosen:
    """One call of top-k over the last dimension: of N tokens, k of E.

    Attributes:
        scores: ``[N, E]`` in float32.
        indices: ``[N, k]``.
    """

    scores: torch.Tensor
    indices: torch.Tensor

    def fits(self, scores: torch.Tensor, indices: torch.Tensor) -> bool:
        """Whether a choice is of as many out of as many."""
        return (scores.shape[-1], indices.shape[-1]) == (
            self.scores.shape[-1],
            self.indices.shape[-1],
        )

    def of(self, scores: torch.Tensor) -> torch.Tensor:
        """What the token with the nearest scores chose, for ``[..., E]``."""
        rows = _finite(scores).reshape(-1, scores.shape[-1])
        exact = "donot_use_mm_for_euclid_dist"
        nearest = [
            torch.cdist(some, self.scores, compute_mode=exact).argmin(dim=-1)
            for some in torch.split(rows, _AT_ONCE)
        ]
        return self.indices[torch.cat(nearest)].view(*scores.shape[:-1], -1)


Selections: TypeAlias = list[_Chosen]  # of one pass, in the order of its calls


def of_all(passes: Sequence[Selections]) -> Selections:
    """The tokens of several passes as if they were one's; nothing where passes are not alike."""
    if len({len(own) for own in passes}) != 1:
        return []
    calls = list(zip(*passes, strict=True))
    if any(not call[0].fits(own.scores, own.indices) for call in calls for own in call):
        return []
    return [
        _Chosen(torch.cat([own.scores for own in call]), torch.cat([own.indices for own in call]))
        for call in calls
    ]


@contextmanager
def recorded(model: Any) -> Iterator[Selections]:
    """Fills the list with what the model's passes choose; after one pass it is that one's."""
    own: Selections = []

    def record(call: int, scores: torch.Tensor, chosen: Any) -> Any:
        del own[call:]
        own.append(_Chosen(_finite(scores).reshape(-1, scores.shape[-1]), _rows(chosen.indices)))
        return chosen

    with _each_call(model, record):
        yield own


@contextmanager
def repeated(model: Any, own: Selections) -> Iterator[None]:
    """Every pass chooses as the recorded one did for the token with the nearest scores.

    A token is told from another by its scores alone, so that it does not matter how a pass packs or
    pads. A choice that is of another width than that in its place, such as one among the tokens of
    a context, is left as it is.
    """

    def repeat(call: int, scores: torch.Tensor, chosen: Any) -> Any:
        if call >= len(own) or not own[call].fits(scores, chosen.indices):
            return chosen
        indices = own[call].of(scores)
        return torch.return_types.topk((scores.gather(-1, indices), indices))

    with _each_call(model, repeat):
        yield


class _Calls(TorchFunctionMode):
    """Hands every top-k over the last dimension on, with its number in the pass."""

    def __init__(self, on_call: Callable[[int, torch.Tensor, Any], Any]) -> None:
        super().__init__()
        self._on_call = on_call
        self.next = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in _TOPK:
            return result
        scores = args[0] if args else kwargs["input"]
        dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
        if scores.dim() < 2 or dim not in (-1, scores.dim() - 1):
            return result
        call, self.next = self.next, self.next + 1
        return self._on_call(call, scores, result)


@contextmanager
def _each_call(model: Any, on_call: Callable[[int, torch.Tensor, Any], Any]) -> Iterator[None]:
    calls = _Calls(on_call)

    def begin(*_: Any) -> None:
        calls.next = 0

    hook = model.register_forward_pre_hook(begin)
    try:
        with calls:
            yield
    finally:
        hook.remove()


def _finite(scores: torch.Tensor) -> torch.Tensor:
    """In float32; what is masked with an infinity is far away and not undefined."""
    return scores.float().nan_to_num(nan=0.0, posinf=1e9, neginf=-1e9)


def _rows(indices: torch.Tensor) -> torch.Tensor:
    return indices.reshape(-1, indices.shape[-1])
