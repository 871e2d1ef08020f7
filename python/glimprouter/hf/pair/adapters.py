"""Adapters of PEFT: which base a folder adapts, and two models over the weights of one base."""

from __future__ import annotations

import copy
import json
from itertools import chain
from pathlib import Path
from typing import Any

from transformers.utils.import_utils import is_peft_available

# Attributes of PEFT's layers that decide what is added to what the base computes.
_ADAPTED = "merged_adapters"  # of the class: no other layer has it
_ADAPTER_STATE = ("_active_adapter", "_disable_adapters", _ADAPTED, "scaling")


def base_of(source: str | Path) -> str | None:
    """The model that an adapter's folder adapts; None for a folder, or a hub name, of a model.

    Adapters that are named on the hub are left to ``transformers``.

    Args:
        source: Directory or hub name.

    Raises:
        ImportError: It is an adapter, and ``peft`` is not installed.
        ValueError: It does not say what it adapts.
    """
    folder = Path(source)
    described = folder / "adapter_config.json"
    if not described.is_file() or (folder / "config.json").is_file():
        return None
    if not is_peft_available():
        raise ImportError(f"{source} holds an adapter: install the package peft to load it")
    base = json.loads(described.read_text()).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{described} names no base_model_name_or_path, the model that it adapts")
    return str(base)


def tokenizer_source(source: str | Path, base: str | None) -> str | Path:
    """Where a model's tokenizer is: an adapter's folder may have one of its own."""
    if base is None or (Path(source) / "tokenizer_config.json").is_file():
        return source
    return base


def on_the_same_weights(model: Any) -> Any:
    """Another model that computes with the same tensors; what is put on it later is its own."""
    shared = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def adapters_in_use(model: Any) -> tuple[object, ...]:
    """What the adapted layers of a model add now: adapters, whether merged or off, and scaling.

    They are told by what PEFT keeps on its layers, so that it need not be installed; in the order
    of the layers, and equal for as long as the model computes the same with the same weights.
    """
    return tuple(
        tuple(repr(getattr(module, name, None)) for name in _ADAPTER_STATE)
        for module in model.modules()
        if hasattr(type(module), _ADAPTED)
    )


def adapt(model: Any, source: str | Path) -> Any:
    """Puts an adapter on a model of its base.

    Raises:
        ValueError: The adapter does not fit: it is one of another base.
    """
    try:
        found = model.load_adapter(str(source))
    except (RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"the adapter {source} does not fit its base: {lines[0] if lines else error!r}"
        ) from error
    wrong = [*getattr(found, "mismatched_keys", ()), *getattr(found, "unexpected_keys", ())]
    if wrong:
        raise ValueError(
            f"the adapter {source} does not fit its base: {len(wrong)} of its tensors have no place"
            f" there, such as {wrong[0]}"
        )
    return model.eval()
