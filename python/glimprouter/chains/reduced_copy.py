"""A model's weights in reduced precision, held as another model: one of ARI's two."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

Precision: TypeAlias = Literal["bfloat16", "float16", "int8"]
_PRECISIONS = ("bfloat16", "float16", "int8")


def reduced_copy(model: Any, precision: Precision = "bfloat16") -> Any:
    """A copy whose weights are rounded; the model itself stays as it is.

    "bfloat16" and "float16" compute in that type, too. "int8" rounds the weights of linear layers
    (without that of the output, which may be the table of embeddings) to 255 steps a row, evenly
    spaced and symmetric about 0, and goes on in the model's own type: it has the values of int8
    weights, not their memory or speed; a quantized checkpoint of the same model has those.

    Buffers keep their type: the frequencies of rotary embeddings, rounded, would turn keys of far
    positions by other angles.

    Args:
        model: A language model of transformers, not quantized.
        precision: Of the copy's weights.

    Raises:
        ValueError: Another precision, or a model without floating-point weights of its own.
    """
    import torch

    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {_PRECISIONS}, got {precision!r}")
    if getattr(model, "is_quantized", False):
        raise ValueError("the model is quantized; make the copy of its unquantized weights")
    reduced = copy.deepcopy(model).eval()
    with torch.no_grad():
        if precision == "int8":
            output = reduced.get_output_embeddings()
            for module in reduced.modules():
                if isinstance(module, torch.nn.Linear) and module is not output:
                    module.weight.copy_(_rounded_rows(module.weight))
            return reduced
        for weight in reduced.parameters():
            if weight.is_floating_point():
                weight.data = weight.data.to(getattr(torch, precision))
    return reduced


def _rounded_rows(weight: torch.Tensor) -> torch.Tensor:
    """Each row as integers in [-127, 127] times one step."""
    import torch

    rows = weight.float()
    step = rows.abs().amax(dim=1, keepdim=True) / 127
    whole = torch.round(rows / step.clamp_min(torch.finfo(torch.float32).tiny))
    return (whole * step).to(weight.dtype)
