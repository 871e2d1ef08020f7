"""Where the router's tests run: GLIMPROUTER_TEST_DEVICE names a device, such as cuda:0."""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

DEVICE = os.environ.get("GLIMPROUTER_TEST_DEVICE", "cpu")


def on_device(array: NDArray[Any], device: str = DEVICE) -> Any:
    """The array where a router on that device wants it; the emulator's memory is the host's."""
    if not device.startswith("cuda"):
        return array
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).to(device).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
