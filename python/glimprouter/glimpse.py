"""The glimpse: statistics of next-token distributions, and sampling from them.

Works on logits of any framework: ``torch.Tensor``, ``numpy.ndarray`` (also
``ml_dtypes.bfloat16``), JAX arrays, or anything with ``__dlpack__`` or a buffer. Results come back
in the framework of the input; inputs are never written.
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glimprouter import _C, on_device
from glimprouter.config import check_integer, check_random_key, check_sampling

__all__ = [
    "Glimpse",
    "Status",
    "get_num_threads",
    "glimpse",
    "nucleus",
    "sample",
    "set_num_threads",
]


class Status(enum.IntEnum):
    """What is wrong with a row of logits, if anything. NaN is reported before +inf."""

    OK = 0
    NAN = 1
    POSITIVE_INFINITY = 2
    ALL_MASKED = 3
    NOT_WAITING = 4  # StepRouter.launch only: the row is not open, or waits for the other model
    NOT_REACHED = 5  # StepRouter.verify and draft: behind a draft that did not hold


class Glimpse(NamedTuple):
    """Statistics of ``B`` next-token distributions at temperature 1, before any filter.

    Every field is an array of the input's framework. A row whose ``status`` is not ``Status.OK``
    has token -1 and NaN statistics.

    Attributes:
        entropy: Shannon entropy H = -sum p ln p in nats, float32 ``[B]``. Within
            ``2e-6 * max(1, H)`` of float64 on the same input values (arXiv 2601.05110, H_init).
            With
            ``entropy_top_k``: of the renormalised top k probabilities, as in the published code.
        logsumexp: ln sum e^x, float32 ``[B]``.
        max_prob: Largest probability, float32 ``[B]``.
        margin: p1 - p2, the gap between the two largest probabilities, float32 ``[B]``.
        token: Id of the largest logit, the lowest of several, int32 ``[B]``.
        status: A :class:`Status` value, uint8 ``[B]``.
        varentropy: Variance of -ln p in square nats, float32 ``[B]``; None unless requested.
        logprobs: ln p of the requested ids, float32 ``[B, K]``; None unless requested.
    """

    entropy: Any
    logsumexp: Any
    max_prob: Any
    margin: Any
    token: Any
    status: Any
    varentropy: Any = None
    logprobs: Any = None


def _converter(logits: Any) -> Callable[[npt.NDArray[Any]], Any]:
    """Turns arrays into the framework of ``logits`` (zero-copy where that framework allows it)."""
    if isinstance(logits, np.ndarray):
        return _unchanged
    root = type(logits).__module__.partition(".")[0]
    if root == "torch" or hasattr(logits, "new_empty"):
        convert: Callable[[npt.NDArray[Any]], Any] = importlib.import_module("torch").from_numpy
        return convert
    if root in ("jax", "jaxlib"):
        to_jax: Callable[[npt.NDArray[Any]], Any] = importlib.import_module("jax.numpy").asarray
        return to_jax
    namespace = getattr(logits, "__array_namespace__", None)
    if namespace is None:
        return _unchanged
    to_namespace: Callable[[npt.NDArray[Any]], Any] = namespace().asarray
    return to_namespace


def _unchanged(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array


def glimpse(
    logits: Any,
    *,
    entropy_top_k: int | None = None,
    varentropy: bool = False,
    logprob_ids: Sequence[int] | None = None,
) -> Glimpse:
    """Entropy and companions of each row of logits, in one pass over them.

    Args:
        logits: ``[B, V]``, float32, bfloat16 or float16, contiguous along ``V``; any row stride
            and alignment. ``B`` may be 0. -inf masks an element. A torch tensor on a CUDA device
            is evaluated there, on its current stream; the results stay there, and nothing waits.
        entropy_top_k: None for the entropy over the whole row; k for that of the renormalised k
            largest probabilities (20 in the published code).
        varentropy: Also compute the variance of -ln p.
        logprob_ids: Ids whose log-probabilities are wanted, each in ``[0, V)``.

    Returns:
        A :class:`Glimpse` in the framework of ``logits``.

    Raises:
        TypeError: ``logits`` is no tensor, or its element type is not one of the three (float64 is
            not converted silently).
        ValueError: Wrong shape, stride or device, or an argument outside its range.
    """
    if entropy_top_k is not None:
        check_integer("entropy_top_k", entropy_top_k, 1, "None for the full entropy")
    fields = _C.glimpse(logits, entropy_top_k or 0, varentropy, logprob_ids)
    if isinstance(fields, str):  # the device where the logits are: results need memory there
        return Glimpse(
            *on_device.glimpse_fields(logits, fields, entropy_top_k or 0, varentropy, logprob_ids)
        )
    entropy, logsumexp, max_prob, margin, token, status, variance, logprobs = fields
    like = _converter(logits)  # looked up once: it would cost as much as a tenth of the kernel
    return Glimpse(
        like(entropy),
        like(logsumexp),
        like(max_prob),
        like(margin),
        like(token),
        like(status),
        None if variance is None else like(variance),
        None if logprobs is None else like(logprobs),
    )


def _keys(name: str, values: int | Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    array = np.asarray(values)
    if array.dtype.kind == "O" or (array.dtype.kind == "i" and (array < 0).any()):
        raise ValueError(f"{name} must lie in [0, 2^64), got {values!r}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an integer or integers, got {values!r}")
    return np.ascontiguousarray(array, dtype=np.uint64).reshape(-1)


def sample(
    logits: Any,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
    substream: int | Sequence[int] | npt.NDArray[Any] = 0,
    position: int | Sequence[int] | npt.NDArray[Any] = 0,
    purpose: int = 0,
) -> Any:
    """Draw one token per row, with the filters in the order of transformers.

    Temperature, then top-k (exactly k, ties by lower id), then top-p over the renormalised rest
    (the smallest prefix with mass >= p), then min-p. Randomness is counter-based (Philox4x32-10):
    the draw depends on (seed, substream, position, purpose) alone.

    Args:
        logits: ``[B, V]`` as in :func:`glimpse`.
        temperature: 0 for greedy, else in [1e-4, 1e4].
        top_p: In (0, 1]; 1 is off.
        top_k: Number of tokens kept; 0 is off.
        min_p: In [0, 1], a fraction of the largest probability; 0 is off.
        seed: Seed of the run, in [0, 2^64).
        substream: Random key of each sequence, an integer or ``[B]``.
        position: Number of tokens generated before, an integer or ``[B]``.
        purpose: Separates draws at one position, in [0, 2^32). :class:`glimprouter.StepRouter`
            draws the small model's tokens with 0 and the large one's with 1.

    Returns:
        int32 ``[B]`` in the framework of ``logits``; -1 for a row with NaN, +inf or only -inf.

    Raises:
        TypeError: As in :func:`glimpse`.
        ValueError: As in :func:`glimpse`, or a parameter outside its range.
    """
    check_sampling(temperature, top_p, top_k, min_p)
    check_random_key("seed", seed)
    keys = _keys("substream", substream), _keys("position", position)
    check_integer("purpose", purpose, 0, high=2**32 - 1)
    tokens = _C.sample(logits, temperature, top_p, top_k, min_p, seed, *keys, purpose)
    if isinstance(tokens, str):  # as in glimpse()
        filters = (temperature, top_p, top_k, min_p)
        return on_device.sample_tokens(logits, tokens, filters, int(seed), *keys, int(purpose))
    return _converter(logits)(tokens)


def nucleus(
    logits: Any, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The tokens that the filters of :func:`sample` keep, with their renormalised probabilities.

    Args:
        logits: One row, ``[V]`` or ``[1, V]``.
        temperature: As in :func:`sample`; likewise the filters.
        top_p: See :func:`sample`.
        top_k: See :func:`sample`.
        min_p: See :func:`sample`.

    Returns:
        ids int32 ``[n]``, most probable first (ties by lower id), and probabilities float32
        ``[n]``. n = 0 for a row with NaN, +inf or only -inf. A token more than about 87.7 nats
        below the most probable one (after temperature) has probability 0 and is never kept.
    """
    check_sampling(temperature, top_p, top_k, min_p)
    return _C.nucleus(logits, temperature, top_p, top_k, min_p)


def set_num_threads(count: int) -> None:
    """Let a batch use ``count`` threads, the caller's included (default 1; process-wide).

    Raises:
        ValueError: ``count`` lies outside [1, 256].
    """
    _C.set_num_threads(count)


def get_num_threads() -> int:
    """The number of threads that a batch may use."""
    return _C.get_num_threads()
