"""Two models and their tokenizers from directories or hub names, placed where they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from glimprouter import _C
from glimprouter.hf.pair.adapters import adapt, base_of, on_the_same_weights, tokenizer_source
from glimprouter.hf.pair.devices import device_of_each, torch_device
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


def check_devices(device: Any) -> str | dict[str, str] | None:
    """As :func:`check_device`, also of one for each model.

    Raises:
        ValueError: This build has no such device, or the names are not those of both models.
    """
    if not isinstance(device, Mapping):
        return check_device(device)
    full = {name: check_device(own) for name, own in device_of_each(device).items()}
    if None in full.values():
        raise ValueError(f"device for each model needs a device for both, got {dict(device)!r}")
    return {name: str(own) for name, own in full.items()}


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
    device: str | Mapping[str, str] | None,
    options: Mapping[str, Any],
) -> tuple[list[Any], list[Any]]:
    """Both models, in evaluation mode, and both tokenizers.

    Passes of other pairs wait meanwhile: loading changes torch's default dtype. A base and its
    adapter, or two adapters of one base, share the weights of the base.

    Args:
        small: Directory or hub name, of a model or of an adapter.
        large: Likewise.
        device: Where the models go, or each of them; None for where ``transformers`` puts them.
            With a ``device_map`` that decides.
        options: Options of ``from_pretrained`` in ``transformers``, each for both models or for
            each one (:func:`option_of`); None is left out.

    Returns:
        The models and the tokenizers, small before large.

    Raises:
        ImportError: There is an adapter, and ``peft`` is not installed.
        ValueError: An adapter that does not fit its base, or does not name it.
        OSError: Nothing to load there.
    """
    places = device_of_each(device)
    with loading():
        plans = [
            _plan(name, source, places[name], options)
            for name, source in zip(MODELS, (small, large), strict=True)
        ]
        tokenizers = [
            AutoTokenizer.from_pretrained(tokenizer_source(plan.source, plan.base), **plan.of_files)
            for plan in plans
        ]
        if _share_weights(*plans):
            base = _load(plans[0].base or plans[0].source, plans[0])
            # The second one first: what an adapter puts on a model would be copied, too.
            models = [base, on_the_same_weights(base)]
            models = [
                model if plan.base is None else adapt(model, plan.source)
                for model, plan in zip(models, plans, strict=True)
            ]
        else:
            models = [_load(plan.source, plan) for plan in plans]
    return models, tokenizers


@dataclass(frozen=True)
class _Plan:
    """How one model is loaded.

    Attributes:
        source: Directory or hub name.
        base: The model that an adapter there adapts; None where there is a model.
        own: Options of ``from_pretrained``.
        of_files: Those that say where files come from.
        home: Where the model is moved when it is loaded; None where it stays.
    """

    source: str | Path
    base: str | None
    own: dict[str, Any]
    of_files: dict[str, Any]
    home: str | None


def _plan(name: str, source: str | Path, device: str | None, options: Mapping[str, Any]) -> _Plan:
    base = base_of(source)
    own = {key: option_of(name, value) for key, value in options.items()}
    own = {key: value for key, value in own.items() if value is not None}
    local = Path(base or source).is_dir()
    own["local_files_only"] = own.get("local_files_only", False) or local
    of_files = {key: own[key] for key in (*_OF_FILES, "local_files_only") if key in own}
    placed = "device_map" in own
    if device is not None and not placed and _is_quantized(base or source, own, of_files):
        # Such models are put in place while they are loaded: they cannot be moved.
        own["device_map"], placed = {"": torch_device(device)}, True
    home = None if device is None or placed else torch_device(device)
    return _Plan(source, base, own, of_files, home)


def _share_weights(small: _Plan, large: _Plan) -> bool:
    """Whether one base serves both: an adapter and its base, or two adapters of one.

    Not where layers are spread over devices, or quantized: hooks and packed weights are not copied.
    """
    adapted = small.base is not None or large.base is not None
    sources = [str(plan.base or plan.source) for plan in (small, large)]
    same = sources[0] == sources[1] or (
        all(Path(source).is_dir() for source in sources) and Path(sources[0]).samefile(sources[1])
    )
    if not (adapted and same and small.own == large.own and small.home == large.home):
        return False
    if "device_map" in small.own:
        return False
    return not _is_quantized(sources[0], small.own, small.of_files)


def _load(source: str | Path, plan: _Plan) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(source, **plan.own)
    if plan.home is not None:
        model = model.to(plan.home)
    return model.eval()
