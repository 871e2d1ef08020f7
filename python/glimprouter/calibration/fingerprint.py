"""What tells one pair of models from another, whatever the path and the dtype of loading."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, cast

from glimprouter.calibration.pairs import AnyPair, on_engines

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel
    from glimprouter.vllm import RoutedEngines

# What shapes the model's distribution; names of paths, versions and dtypes are left out.
_ESSENTIAL = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "rope_parameters",
    "tie_word_embeddings",
)
_VALUES = 16  # of each weight
_LEAST = 2.0**-17  # bfloat16 values below it are not exact in float16


ENGINES = ":vllm"  # ends the fingerprint of a pair on engines


def pair_fingerprint(model: AnyPair) -> str:
    """Two SHA-256 in hexadecimal, of the small and the large model, joined by a colon.

    Each covers the essential values of the model's config, the tokenizer's vocabulary, and the
    first values of each weight rounded to bfloat16. A bfloat16 checkpoint has the same fingerprint
    in bfloat16, float16 and float32; a float32 checkpoint in bfloat16 and float32 only, since
    float16 rounds in between. Needs torch.

    Engines do not show their weights: theirs covers the names that they serve their models under
    and the vocabularies, and ends with ``:vllm``.

    Args:
        model: The pair; engines are asked what they serve.

    Raises:
        EngineLost: An engine does not answer.
        EngineRefused: It cannot serve.
    """
    if on_engines(model):
        return _engines_fingerprint(model)
    own = cast("RoutedModel", model)
    small = _model_digest(own.small, own.tokenizer)
    return f"{small}:{_model_digest(own.large, own.large_tokenizer)}"


def _engines_fingerprint(model: RoutedEngines) -> str:
    model.check()
    tokenizers = {"small": model.tokenizer, "large": model.large_tokenizer}
    digests = []
    for name, tokenizer in tokenizers.items():
        digest = hashlib.sha256(model.facts[name].model.encode())
        _add_vocabulary(digest, tokenizer)
        digests.append(digest.hexdigest())
    return ":".join(digests) + ENGINES


def _add_vocabulary(digest: Any, tokenizer: Any) -> None:
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{index}:{token}\0".encode("utf-8", "surrogatepass"))


def _model_digest(model: Any, tokenizer: Any) -> str:
    import torch

    text_config = model.config.get_text_config()
    values = {name: getattr(text_config, name, None) for name in _ESSENTIAL}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    _add_vocabulary(digest, tokenizer)
    for weight in model.parameters():
        if not weight.is_floating_point():
            continue  # packed by a quantization; its scales and the norms are left
        first = weight.detach().reshape(-1)[:_VALUES].to("cpu", torch.float32)
        rounded = first.to(torch.bfloat16).to(torch.float32)
        rounded = torch.where(rounded.abs() < _LEAST, 0.0, rounded)  # -0 becomes 0 as well
        digest.update(json.dumps([list(weight.shape), rounded.tolist()]).encode())
    return digest.hexdigest()
