"""A device that is lost, whoever finds out: our own calls, or torch's."""

from __future__ import annotations

import torch

from glimprouter._C import DeviceLost, check_device_error


def raise_if_lost(error: BaseException, device: str) -> None:
    """Nothing, unless an error says that a device is lost: torch's word for it becomes ours.

    Args:
        error: That was raised.
        device: Where, for the message.

    Raises:
        DeviceLost: It does.
    """
    if isinstance(error, DeviceLost):
        raise error
    code = getattr(error, "error_code", None)
    if isinstance(error, torch.AcceleratorError) and isinstance(code, int):
        try:
            check_device_error(code, device, str(error).split("\n", 1)[0])
        except DeviceLost as lost:
            raise lost from error
