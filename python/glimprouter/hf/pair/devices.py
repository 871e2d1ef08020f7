"""Where the steps of a pair run and its pages lie: beside the models, or on the CPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from glimprouter import _C

_SIMULATED = "simt"  # the emulator: a device that works on host memory


def torch_device(device: str) -> str:
    """Where torch keeps the tensors of a device of this build."""
    return "cpu" if device.startswith(_SIMULATED) else device


def choose_device(wanted: str | None, models: Mapping[str, Any]) -> str:
    """A device of this build for models.

    Args:
        wanted: Its name; None for where the models are.
        models: By name.

    Returns:
        A name in ``build_info()["devices"]``.

    Raises:
        ValueError: No such device, or models that are elsewhere.

    Warns:
        RuntimeWarning: None was wanted, and the models are where this build can do nothing, or on
            several devices: logits are copied to the CPU after every pass.
    """
    known = list(_C.build_info()["devices"])
    homes = {name: str(model.device) for name, model in models.items()}
    shared = set(homes.values())
    if wanted is None:
        home = next(iter(shared)) if len(shared) == 1 else ""
        if home in known:
            return home
        warnings.warn(
            f"the models are on {homes}, this build runs steps on {known}, for both models of a"
            " pair on the same: logits are copied to the CPU after every forward pass",
            RuntimeWarning,
            stacklevel=3,  # who constructs the RoutedModel
        )
        return "cpu"
    if wanted not in known:
        raise ValueError(f"device must be one of {known}, got {wanted!r}")
    if wanted != "cpu" and shared != {torch_device(wanted)}:
        raise ValueError(f"device={wanted!r} needs the models there, they are on {homes}")
    return wanted


def default_arena_bytes(device: str, held: int = 0) -> int:
    """Half of what is free on a GPU, or of all that the host has.

    The host's is only taken as pages are written.

    Args:
        device: The device of this build.
        held: Bytes that are not free, but may be had as well.
    """
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return (int(free) + held) // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
