"""One sequence of a run as bytes: what the run, the router and the engine know of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

_FORMAT = 6
_FAMILY = b"GRRUN"
_MAGIC = _FAMILY + bytes([_FORMAT]) + b"\r\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_RECORD, _ROUTER, _MEMORY = "record", "router", "memory."
# What decides the shape of keys and values, and their meaning as far as a config tells.
_GEOMETRY = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


def bytes_as_tensor(data: bytes) -> torch.Tensor:
    """Uint8 ``[bytes]``, a copy."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()


def tensor_as_bytes(tensor: torch.Tensor) -> bytes:
    """The other way round."""
    return bytes(tensor.numpy().tobytes())


def _text_of(config: Any, key: str) -> str:
    """A value of a configuration, or those of its layers where they differ."""
    try:
        return str(getattr(config, key, None))
    except Exception:  # such a configuration refuses to name one value
        layers = range(config.num_hidden_layers)
        return str([getattr(config.per_layer_config[layer], key, None) for layer in layers])


def pair_description(models: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What must be the same of both models where a sequence goes on, by model and name."""
    found = {}
    for name, model in models.items():
        config = model.config.get_text_config()
        values = {key: _text_of(config, key) for key in _GEOMETRY}
        found[name] = {**values, "dtype": str(model.dtype)}
    return found


@dataclass(frozen=True)
class SavedSequence:
    """A sequence between two forward passes.

    Attributes:
        engine: ``"paged"`` or ``"gather"``: whose memory it is.
        pair: What comes of :func:`pair_description`.
        record: What comes of ``SequenceRecord.state``.
        router: Bytes of ``StepRouter.save``.
        memory: What comes of ``Engine.save``: keys and values of both models, and the ledger.
    """

    engine: str
    pair: dict[str, dict[str, str]]
    record: dict[str, Any]
    router: bytes
    memory: dict[str, torch.Tensor]

    def to_bytes(self) -> bytes:
        """Everything, with a digest in front: safetensors, so that reading runs no code."""
        header = {"engine": self.engine, "pair": self.pair, "record": self.record}
        tensors = {
            _RECORD: bytes_as_tensor(json.dumps(header).encode()),
            _ROUTER: bytes_as_tensor(self.router),
            **{_MEMORY + name: tensor.contiguous() for name, tensor in self.memory.items()},
        }
        body = save(tensors)
        return _MAGIC + hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, saved: bytes) -> SavedSequence:
        """Reads it back.

        Raises:
            TypeError: No bytes.
            ValueError: Foreign, damaged or shortened bytes, or those of another version.
        """
        if not isinstance(saved, bytes):
            raise TypeError(f"a saved sequence is bytes, got {type(saved).__name__}")
        if saved.startswith(_FAMILY) and not saved.startswith(_MAGIC):
            raise ValueError(
                "the saved sequence is of another version of glimprouter: its format is"
                f" {saved[len(_FAMILY) : len(_FAMILY) + 1].hex() or 'cut off'}, this one reads"
                f" {_FORMAT:02x}; begin it again"
            )
        if not saved.startswith(_MAGIC):
            raise ValueError("these bytes are not a saved sequence (they come from Run.save)")
        start = len(_MAGIC) + _DIGEST_BYTES
        body = saved[start:]
        if hashlib.sha256(body).digest() != saved[len(_MAGIC) : start]:
            raise ValueError("the saved sequence is damaged or cut short")
        try:
            tensors = load(body)
            header = json.loads(tensor_as_bytes(tensors.pop(_RECORD)))
            router = tensor_as_bytes(tensors.pop(_ROUTER))
            memory = {name.removeprefix(_MEMORY): tensor for name, tensor in tensors.items()}
            return cls(header["engine"], header["pair"], header["record"], router, memory)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError("the saved sequence is of another version of glimprouter") from error

    def check_fits(self, engine: str, pair: dict[str, dict[str, str]]) -> None:
        """Checks that a run can go on with it.

        Raises:
            ValueError: It was saved by the other engine, or with other models.
        """
        for name, values in self.pair.items():
            for key, value in values.items():
                own = pair.get(name, {}).get(key)
                if value != own:
                    raise ValueError(
                        f"the sequence was saved by another pair: the {name} model's {key} was"
                        f" {value}, here it is {own}"
                    )
        if self.engine != engine:
            raise ValueError(
                f"the sequence was saved by the engine {self.engine!r}, this run has {engine!r};"
                f" make the RoutedModel with engine={self.engine!r}"
            )
