"""Glimpse and sample of logits in a device's memory: results stay there, nothing waits."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glimprouter import _C

_WORD = _C.ROW_RESULT_FIELDS  # where a row's result holds what


def _new(logits: Any, shape: tuple[int, int], dtype: str) -> Any:
    """Memory beside the logits, owned by their framework."""
    if isinstance(logits, np.ndarray):
        return np.empty(shape, dtype)
    if not hasattr(logits, "new_empty"):
        raise TypeError(
            "logits on a device must be a torch tensor, because the results need memory beside"
            f" them; got {type(logits).__name__}"
        )
    return logits.new_empty(shape, dtype=getattr(importlib.import_module("torch"), dtype))


def _as(words: Any, dtype: str) -> Any:
    if isinstance(words, np.ndarray):
        return words.view(dtype)
    return words.view(getattr(importlib.import_module("torch"), dtype))


def glimpse_fields(
    logits: Any,
    device: str,
    entropy_top_k: int,
    varentropy: bool,
    logprob_ids: Sequence[int] | None,
) -> tuple[Any, ...]:
    """The fields of :class:`glimprouter.Glimpse`, as views of one block on the device.

    Args:
        logits: ``[B, V]`` on the device.
        device: Its name, such as ``"cuda:0"``.
        entropy_top_k: 0 for the full entropy.
        varentropy: Whether it is wanted.
        logprob_ids: Checked against ``V`` here; copied to the device.

    Raises:
        TypeError: Not a torch tensor.
        ValueError: Wrong shape, stride or alignment, or an id outside the vocabulary.
    """
    rows = int(logits.shape[0]) if getattr(logits, "ndim", 0) else 0
    results = _new(logits, (rows, _C.ROW_RESULT_WORDS), "int32")
    ids = logprobs = None
    if logprob_ids is not None:
        wanted = np.asarray(logprob_ids, dtype=np.int64).reshape(1, -1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < logits.shape[-1]):
            raise ValueError(
                f"logprob_ids {wanted.ravel().tolist()} lie outside the vocabulary of"
                f" {logits.shape[-1]}"
            )
        ids = _new(logits, wanted.shape, "int32")
        # With its own type: new_tensor() alone would round ids to the type of the logits.
        ids[...] = (
            wanted if isinstance(logits, np.ndarray) else logits.new_tensor(wanted, dtype=ids.dtype)
        )
        logprobs = _new(logits, (rows, wanted.shape[1]), "float32")
    _C.glimpse_on_device(logits, entropy_top_k, varentropy, ids, results, logprobs, device)
    floats = _as(results, "float32")
    return (
        floats[:, _WORD["entropy"]],
        floats[:, _WORD["logsumexp"]],
        floats[:, _WORD["max_prob"]],
        floats[:, _WORD["margin"]],
        results[:, _WORD["argmax"]],
        _as(results, "uint8")[:, 4 * _WORD["status"]],  # one byte, padded to a word
        floats[:, _WORD["varentropy"]] if varentropy else None,
        logprobs,
    )


def sample_tokens(
    logits: Any,
    device: str,
    filters: tuple[float, float, int, float],
    seed: int,
    streams: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.uint64],
    purpose: int = 0,
) -> Any:
    """Tokens, int32 ``[B]`` on the device: see :func:`glimprouter.sample`.

    Args:
        logits: ``[B, V]`` on the device.
        device: Its name.
        filters: Temperature, top-p, top-k, min-p.
        seed: Seed of the run.
        streams: One, or one a row.
        positions: Likewise.
        purpose: Of the draw.
    """
    rows = int(logits.shape[0]) if getattr(logits, "ndim", 0) else 0
    results = _new(logits, (rows, _C.ROW_RESULT_WORDS), "int32")
    _C.sample_on_device(logits, *filters, seed, streams, positions, purpose, results, device)
    return results[:, _WORD["token"]]
