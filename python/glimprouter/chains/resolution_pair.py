"""Two models of one architecture, of which either goes on with the other's keys and values."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from glimprouter.chains.plain_cache import plain_cache

if TYPE_CHECKING:
    import torch

# Of a configuration, what says nothing about the form of weights, keys and values.
_FREE = {"dtype", "torch_dtype", "architectures", "quantization_config", "transformers_version"}


def check_one_architecture(reduced: Any, full: Any) -> None:
    """Checks that keys and values of one model mean the same to the other.

    Raises:
        ValueError: Another class, another value in the configuration, precisions the wrong way
            round, or a cache that is not keys and values by layer.
    """
    import torch

    classes = type(reduced).__name__, type(full).__name__
    if classes[0] != classes[1]:
        raise ValueError(
            f"the reduced model is a {classes[0]}, the full one a {classes[1]}: keys and values"
            " are handed over only between precisions of one model"
        )
    forms = [_form(model) for model in (reduced, full)]
    keys = sorted(forms[0].keys() | forms[1].keys())
    # Numbers first: a list of one entry a layer says less than the number of layers.
    for key in sorted(keys, key=lambda key: isinstance(forms[0].get(key), list | dict)):
        values = [form.get(key) for form in forms]
        if values[0] != values[1]:
            raise ValueError(
                f"{key} is {values[0]!r} in the reduced model and {values[1]!r} in the full one:"
                " they must be one model in two precisions"
            )
    bits = [torch.finfo(model.dtype).bits for model in (reduced, full)]
    if bits[0] > bits[1]:
        raise ValueError(
            f"the reduced model computes in {reduced.dtype} and the full one in {full.dtype}:"
            " give them the other way round"
        )
    plain_cache(reduced)
    plain_cache(full)


def _form(model: Any) -> dict[str, Any]:
    values: dict[str, Any] = model.config.get_text_config(decoder=True).to_dict()
    return {k: v for k, v in values.items() if k not in _FREE and not k.startswith("_")}


class CachedModel:
    """A model with the keys and values of one sequence, and counts of what it computed.

    Attributes:
        model: The model.
        cache: Of every token so far, computed here or copied.
        passes: Forward passes.
        tokens: That were computed in them.
        copied: Tokens whose keys and values came from the other model.
    """

    def __init__(self, model: Any) -> None:
        """With an empty cache."""
        self.model = model
        self.cache = plain_cache(model)
        self.passes = self.tokens = self.copied = 0
        # As generate() does: a prompt's other logits are never read.
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if keeps else {}

    @property
    def length(self) -> int:
        """Tokens whose keys and values are there."""
        return int(self.cache.get_seq_length())

    def read(self, ids: list[int]) -> torch.Tensor:
        """Computes tokens; the logits behind the last, ``[1, V]``, float32."""
        import torch

        tokens = torch.tensor([ids], device=self.model.device)
        logits: torch.Tensor = self.model(
            tokens, past_key_values=self.cache, use_cache=True, **self._options
        ).logits
        self.passes += 1
        self.tokens += len(ids)
        return logits[:, -1].float().contiguous()

    def cast_copy(self, other: CachedModel, start: int, end: int) -> None:
        """Takes the other's keys and values of the tokens [start, end), and forgets what follows.

        They are cast to this model's type, so they are what the other would have here only up to
        the rounding of both models' layers: that is the approximation.
        """
        for index, layer in enumerate(other.cache.layers):
            mine = self.cache.layers[index]
            mine.crop(min(0, start - mine.get_seq_length()))
            parts = (part[..., start:end, :] for part in (layer.keys, layer.values))
            mine.update(*(part.to(self.model.device, self.model.dtype) for part in parts))
        self.copied += end - start
