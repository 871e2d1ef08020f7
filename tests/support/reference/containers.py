"""Containers that carry the same rows in other frameworks and layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class DlpackOnly:
    """A read-only tensor of an unknown framework: it speaks the DLPack protocol, nothing else."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        device = self._array.__dlpack_device__()
        return int(device[0]), int(device[1])


def as_numpy(values: Any) -> NDArray[Any]:
    """Returns any framework's host tensor as a NumPy array."""
    return np.asarray(values.detach().numpy() if hasattr(values, "detach") else values)


def bits(values: Any) -> NDArray[np.uint8]:
    """Returns the bytes of an array: equality of these is bitwise equality, NaN included."""
    return np.frombuffer(np.ascontiguousarray(as_numpy(values)).tobytes(), dtype=np.uint8)


def unaligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    """Returns a copy whose first byte lies at an odd address."""
    padded = bytearray(array.nbytes + 64)
    base = np.frombuffer(padded, dtype=np.uint8)
    offset = 1 if base.ctypes.data % 2 == 0 else 2
    view = np.frombuffer(padded, dtype=array.dtype, count=array.size, offset=offset)
    view[:] = array.reshape(-1)
    result: NDArray[Any] = view.reshape(array.shape)
    if result.ctypes.data % 2 == 0:
        raise AssertionError("the copy was meant to be unaligned")
    return result
