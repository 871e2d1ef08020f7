"""What a decoder consists of: the modules of a model by their part in it."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from transformers.activations import SiLUActivation

from glimprouter.hf.attention.fused_norms import FoundNorm, find_norm
from glimprouter.hf.attention.fused_operations import HostOperations

# Models whose layers are norm, attention over grouped heads with rotary embeddings, residual, norm,
# gated MLP with SiLU, residual, and nothing else. A trial compares each of them all the same.
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = ("gate_proj", "up_proj", "down_proj")
_LANES = 16  # rows of matrices are multiples of so many elements
FUNCTIONS = ("apply_rotary_pos_emb", "rotate_half")  # that a family's code calls by name
_ACTIVATIONS = (torch.nn.SiLU, SiLUActivation)
_ROTATIONS = ("default", "linear", "llama3", "yarn")  # whose angles depend on the position alone

Matrix = tuple[torch.Tensor, torch.Tensor | None]
NormPart = tuple[torch.Tensor, float, float]


class LayerParts(NamedTuple):
    """Of one layer: norms as (weight, epsilon, offset), matrices as (weight, bias).

    Attributes:
        attention_norm: Before the attention.
        query: Of the attention; likewise ``key``, ``value``, ``output``.
        key: See there.
        value: See there.
        query_norm: Of each head; None where there is none.
        key_norm: Likewise.
        output: See ``query``.
        mlp_norm: Before the MLP.
        gate: Of the MLP; likewise ``up`` and ``down``.
        up: See there.
        down: See there.
    """

    attention_norm: NormPart
    query: Matrix
    key: Matrix
    value: Matrix
    query_norm: NormPart | None
    key_norm: NormPart | None
    output: Matrix
    mlp_norm: NormPart
    gate: Matrix
    up: Matrix
    down: Matrix


class DecoderParts(NamedTuple):
    """Of a model.

    Attributes:
        embedding: ``[vocabulary, hidden]``.
        layers: In order.
        norm: Behind the last one.
        head: To logits.
        rotary: The module that knows the angles of positions.
    """

    embedding: torch.Tensor
    layers: list[LayerParts]
    norm: NormPart
    head: Matrix
    rotary: Any


class OtherModel(Exception):
    """It is no such decoder."""


def find_parts(model: Any) -> DecoderParts:
    """The parts of a model in float32 on the CPU.

    Args:
        model: A model of transformers.

    Raises:
        OtherModel: It is another one.
    """
    kind = getattr(model.config, "model_type", None)
    home = f"transformers.models.{kind}.modeling_{kind}"
    if kind not in _FAMILIES or type(model).__module__ != home:
        raise OtherModel
    if model.dtype is not torch.float32 or model.device.type != "cpu" or model.training:
        raise OtherModel
    for module in model.modules():  # nobody's own attention, and nobody's own forward
        own: Any = type(module)
        known = own.__module__ in (home, "transformers.activations")
        if not known and not own.__module__.startswith("torch.nn.modules."):
            raise OtherModel
        if "forward" in module.__dict__ or not _is_theirs(own.forward):
            raise OtherModel
    if not all(_is_theirs(getattr(sys.modules[home], name, None)) for name in FUNCTIONS):
        raise OtherModel
    _only(model, {"model", "lm_head"})
    body = model.model
    _only(body, {"embed_tokens", "layers", "norm", "rotary_emb"})
    if body.rotary_emb.rope_type not in _ROTATIONS:
        raise OtherModel
    embedding = body.embed_tokens
    if type(embedding) is not torch.nn.Embedding or embedding.max_norm is not None:
        raise OtherModel
    return DecoderParts(
        embedding.weight,
        [_layer(layer, index) for index, layer in enumerate(body.layers)],
        _norm(body.norm),
        _matrix(model.lm_head),
        body.rotary_emb,
    )


def _is_theirs(function: Any) -> bool:
    """Whether a function, and all that it wraps, is code of transformers or torch."""
    while function is not None:
        home = getattr(function, "__globals__", {}).get("__name__", "")
        if not home.startswith(("transformers.", "torch.")):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _layer(layer: Any, index: int) -> LayerParts:
    _only(layer, _LAYER)
    attention, mlp = layer.self_attn, layer.mlp
    # Its own code takes the pages of its number, whatever its place. An activation cannot be tried
    # where a matrix behind it is zero.
    if attention.layer_idx != index or type(mlp.act_fn) not in _ACTIVATIONS:
        raise OtherModel
    _only(attention, {*_ATTENTION, *_HEAD_NORMS}, least=set(_ATTENTION))
    _only(mlp, {*_MLP, "act_fn"}, least=set(_MLP))
    query, key, value, output = (_matrix(getattr(attention, name)) for name in _ATTENTION)
    gate, up, down = (_matrix(getattr(mlp, name)) for name in _MLP)
    if down[1] is not None or output[1] is not None:
        raise OtherModel  # the sum of bias and residual would be rounded otherwise
    query_norm, key_norm = (
        _norm(attention._modules[name]) if name in attention._modules else None
        for name in ("q_norm", "k_norm")
    )
    return LayerParts(
        _norm(layer.input_layernorm),
        query,
        key,
        value,
        query_norm,
        key_norm,
        output,
        _norm(layer.post_attention_layernorm),
        gate,
        up,
        down,
    )


def _only(module: Any, children: set[str], least: set[str] | None = None) -> None:
    """Refuses a module with other children, or without one of them."""
    own = {name for name, child in module._modules.items() if child is not None}
    if not own <= children or not own >= (children if least is None else least):
        raise OtherModel


def _matrix(module: Any) -> Matrix:
    if type(module) is not torch.nn.Linear or module.weight.dim() != 2:
        raise OtherModel
    weight = module.weight
    if weight.shape[1] % _LANES or not weight.is_contiguous() or weight.dtype is not torch.float32:
        raise OtherModel
    return module.weight, module.bias


def _norm(module: Any) -> NormPart:
    found: FoundNorm | None = find_norm(module, HostOperations())
    if found is None:
        raise OtherModel
    weight, epsilon, form = found.present()
    return weight, epsilon, form.offset
