"""Where the steps of a pair run and its pages lie: beside the models, or on the CPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from glimprouter import _C
from glimprouter.hf.pair.text import MODELS

_SIMULATED = "simt"  # the emulator: a device that works on host memory


def torch_device(device: str) -> str:
    """Where torch keeps the tensors of a device of this build."""
    return "cpu" if device.startswith(_SIMULATED) else device


def choose_devices(
    wanted: str | Mapping[str, str] | None, models: Mapping[str, Any]
) -> dict[str, str]:
    """A device of this build for each model.

    Args:
        wanted: Its name, or one for each model; None for where the models are.
        models: By name: small, large.

    Returns:
        For each model a name in ``build_info()["devices"]``.

    Raises:
        ValueError: No such device, or models that are elsewhere.

    Warns:
        RuntimeWarning: None was wanted, and a model is where this build can do nothing: logits are
            copied to the CPU after every pass.
    """
    known = list(_C.build_info()["devices"])
    homes = {name: str(model.device) for name, model in models.items()}
    if wanted is None:
        if all(home in known for home in homes.values()):
            return homes
        warnings.warn(
            f"the models are on {homes}, this build runs steps on {known}: logits are copied to the"
            " CPU after every forward pass",
            RuntimeWarning,
            stacklevel=3,  # who constructs the RoutedModel
        )
        return dict.fromkeys(models, "cpu")
    chosen = device_of_each(wanted)
    for device in chosen.values():
        if device not in known:
            raise ValueError(f"device must be one of {known}, got {device!r}")
    if wanted == "cpu":
        return chosen  # also for models that are elsewhere
    for name, device in chosen.items():
        if homes[name] != torch_device(device):
            raise ValueError(f"device={wanted!r} needs the models there, they are on {homes}")
    return chosen


def device_of_each(device: Any) -> dict[str, Any]:
    """One for both models, or what a mapping says for each.

    Raises:
        ValueError: A mapping with other names than those of both models.
    """
    if not isinstance(device, Mapping):
        return dict.fromkeys(MODELS, device)
    if set(device) != set(MODELS):
        raise ValueError(
            f'device for each model is {{"small": ..., "large": ...}}, got {dict(device)!r}'
        )
    return {name: device[name] for name in MODELS}


def device_or_each(devices: Mapping[str, str]) -> str | dict[str, str]:
    """The device of both models, or that of each where they differ."""
    one, *others = set(devices.values())
    return dict(devices) if others else one


def models_by_device(devices: Mapping[str, str]) -> dict[str, list[str]]:
    """The names of the models on each device, in order."""
    return {
        device: [name for name, own in devices.items() if own == device]
        for device in dict.fromkeys(devices.values())
    }


KvMemory = int | Mapping[str, int] | None  # of both models, or on two devices of each


def memory_for(memory: KvMemory, name: str) -> int | None:
    """Bytes on the device of a model; None where nothing is said."""
    return memory.get(name) if isinstance(memory, Mapping) else memory


def check_memory(memory: KvMemory, devices: Mapping[str, str], engine: str) -> None:
    """Refuses memory for each model where both share it.

    Raises:
        ValueError: That.
    """
    if not isinstance(memory, Mapping):
        return
    if engine == "paged" and len(set(devices.values())) > 1:
        return
    raise ValueError(
        "kv_memory_bytes for each model needs pages on two devices; this pair runs on"
        f" {engine!r} on {', '.join(dict.fromkeys(devices.values()))}, where both models share one"
        " memory: pass one number"
    )


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
