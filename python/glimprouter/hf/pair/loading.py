"""Two models and their tokenizers from directories or hub names, placed where they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from glimprouter import _C
from glimprouter.hf.pair.devices import torch_device
from glimprouter.hf.pair.locks import loading
from glimprouter.hf.pair.text import MODELS

# What says where files come from concerns the tokenizers too; one GGUF file holds both.
_OF_FILES = (
    "gguf_file",
    "trust_remote_code",
    "revision",
    "subfolder",
    "token",
    "cache_dir",
    "proxies",
    "force_download",
)


def option_of(name: str, value: Any) -> Any:
    """A model's part of an option that may be given for each model.

    Only a mapping with no other keys than ``"small"`` and ``"large"`` is one for each; what it does
    not name is None.
    """
    if isinstance(value, Mapping) and value and set(value) <= set(MODELS):
        return value.get(name)
    return value


def check_device(device: Any) -> str | None:
    """The full name of a device (a string or a ``torch.device``), before anything is loaded.

    Raises:
        ValueError: This build has no such device, or the machine has none.
    """
    if device is None:
        return None
    if not isinstance(device, str):
        device = str(device)
    known = list(_C.build_info()["devices"])
    full = f"{device}:0" if f"{device}:0" in known else device
    if full not in known:
        hint = ""
        if device.startswith("cuda"):
            hint = "; no GPU was found, or this build has no CUDA kernels (docs/building.md)"
        raise ValueError(f"device must be one of {known}, got {device!r}{hint}")
    return full


def _is_quantized(source: Any, own: Mapping[str, Any], of_files: Mapping[str, Any]) -> bool:
    """Whether the caller or the checkpoint itself quantizes the model."""
    if "quantization_config" in own:
        return True
    config = AutoConfig.from_pretrained(source, **of_files)
    return getattr(config, "quantization_config", None) is not None


def load_pair(
    small: str | Path,
    large: str | Path,
    device: str | None,
    options: Mapping[str, Any],
) -> tuple[list[Any], list[Any]]:
    """Both models, in evaluation mode, and both tokenizers.

    Passes of other pairs wait meanwhile: loading changes torch's default dtype.

    Args:
        small: Directory or hub name.
        large: Likewise.
        device: Where the models go; None for where ``transformers`` puts them. With a
            ``device_map`` that decides.
        options: Options of ``from_pretrained`` in ``transformers``, each for both models or for
            each one (:func:`option_of`); None is left out.

    Returns:
        The models and the tokenizers, small before large.
    """
    models: list[Any] = []
    tokenizers: list[Any] = []
    with loading():
        for name, source in zip(MODELS, (small, large), strict=True):
            own = {key: option_of(name, value) for key, value in options.items()}
            own = {key: value for key, value in own.items() if value is not None}
            own["local_files_only"] = own.get("local_files_only", False) or Path(source).is_dir()
            of_files = {key: own[key] for key in (*_OF_FILES, "local_files_only") if key in own}
            placed = "device_map" in own
            if device is not None and not placed and _is_quantized(source, own, of_files):
                # Such models are put in place while they are loaded: they cannot be moved.
                own["device_map"], placed = {"": torch_device(device)}, True
            tokenizers.append(AutoTokenizer.from_pretrained(source, **of_files))
            model: Any = AutoModelForCausalLM.from_pretrained(source, **own)
            if device is not None and not placed:
                model = model.to(torch_device(device))
            models.append(model.eval())
    return models, tokenizers
