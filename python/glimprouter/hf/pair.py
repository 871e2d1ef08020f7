"""Whether a small model, a large model and their tokenizers make a pair."""

from __future__ import annotations

from typing import Any

from glimprouter.boundary import StepBoundary


def eos_ids(tokenizer: Any, *models: Any) -> list[int]:
    """Every id that ends a sequence: the tokenizer's and those of both generation configs."""
    ids: set[int] = set()
    for source in (tokenizer, *(getattr(model, "generation_config", None) for model in models)):
        value = getattr(source, "eos_token_id", None)
        ids.update([value] if isinstance(value, int) else value or ())
    return sorted(ids)


def check_vocabulary(small: Any, large: Any) -> None:
    """Checks that two tokenizers have the same tokens.

    Raises:
        ValueError: Names the first difference.
    """
    if small is large:
        return
    first, second = small.get_vocab(), large.get_vocab()
    if first == second:
        return
    differing = sorted(set(first.items()) ^ set(second.items()), key=lambda item: item[1])
    token, index = differing[0]
    raise ValueError(
        f"the tokenizers of the pair differ ({len(first)} and {len(second)} tokens; first"
        f" difference at id {index}, {token!r}); this engine needs one shared vocabulary"
    )


def check_width(name: str, model: Any, boundary: StepBoundary) -> None:
    """Checks that a model has logits for every token.

    Raises:
        ValueError: It has fewer.
    """
    width = model.get_output_embeddings().weight.shape[0]
    if width < boundary.vocab_size:
        raise ValueError(
            f"the {name} model has {width} output ids, but the tokenizer has"
            f" {boundary.vocab_size}: they do not belong together"
        )
