"""Whether a small model, a large model and their tokenizers make a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glimprouter.boundary import StepBoundary
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.thinking import ThinkingFormat
from glimprouter.hf.pair.translation import same_vocabulary


def eos_ids(tokenizer: Any, *models: Any) -> list[int]:
    """Every id that ends a sequence: the tokenizer's and those of both generation configs."""
    ids: set[int] = set()
    for source in (tokenizer, *(getattr(model, "generation_config", None) for model in models)):
        value = getattr(source, "eos_token_id", None)
        ids.update([value] if isinstance(value, int) else value or ())
    return sorted(ids)


def boundaries_of(
    tokenizers: Sequence[Any],
    models: Sequence[Any],
    eos_token_ids: Sequence[int] | Mapping[str, Sequence[int]] | None,
    formats: Sequence[ThinkingFormat | None],
) -> list[StepBoundary]:
    """Where steps end, for the small and the large model's tokenizer; the same one if they agree.

    Args:
        tokenizers: Tokenizers of the small and the large model.
        models: Both models, whose generation configs name ends of sequence.
        eos_token_ids: As in :class:`RoutedModel`.
        formats: How each tokenizer marks thinking.

    Raises:
        ValueError: A marker that a tokenizer cannot write, or ids without a model for two
            vocabularies.
    """
    if same_vocabulary(*tokenizers):
        if isinstance(eos_token_ids, Mapping):
            eos_token_ids = sorted({i for ids in eos_token_ids.values() for i in ids})
        ends = eos_ids(tokenizers[0], *models) if eos_token_ids is None else eos_token_ids
        return [_boundary(tokenizers[0], formats[0], ends)] * 2
    if eos_token_ids is not None and not isinstance(eos_token_ids, Mapping):
        raise ValueError(
            "the tokenizers of the pair differ, so eos_token_ids must say whose they are:"
            ' {"small": [...], "large": [...]}'
        )
    boundaries = []
    rows = zip(MODELS, tokenizers, models, formats, strict=True)
    for name, tokenizer, model, format in rows:
        ends = eos_ids(tokenizer, model) if eos_token_ids is None else eos_token_ids[name]
        try:
            boundary = _boundary(tokenizer, format, ends)
        except ValueError as error:
            raise ValueError(f"the {name} model's tokenizer: {error}") from error
        boundaries.append(boundary)
    return boundaries


def _boundary(tokenizer: Any, format: ThinkingFormat | None, ends: Sequence[int]) -> StepBoundary:
    return StepBoundary.from_tokenizer(
        tokenizer,
        think_start=None if format is None else format.start,
        think_end=None if format is None else format.end,
        think_close=None if format is None else format.close,
        eos_token_ids=ends,
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
