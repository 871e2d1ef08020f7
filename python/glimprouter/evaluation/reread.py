"""A written chain read again by both models: entropies and agreement of every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from glimprouter.calibration.pairs import AnyPair, on_engines

if TYPE_CHECKING:
    import torch

    from glimprouter.hf import Result, RoutedModel

__all__ = ["ReadStep", "read_again", "why_not_reread"]

CHUNK = 256  # tokens of a pass: the logits of a long chain would not fit


@dataclass(frozen=True, slots=True)
class ReadStep:
    """What a model says of a step that stands there.

    Attributes:
        first_entropy: Entropy of the small model before the step's first token, nats at temperature
            1: what a glimpse would have seen.
        entropy: Mean entropy of the small model over the step's tokens, nats at temperature 1.
        perplexity: ``exp(-mean ln p)`` of the small model over them, at temperature 1.
        agrees: For each token ``1`` where both models find the same token most likely; None where
            the large model was not asked.
    """

    first_entropy: float
    entropy: float
    perplexity: float
    agrees: str | None


def why_not_reread(model: AnyPair) -> str | None:
    """Why chains of a pair cannot be read by both models; None where they can."""
    if on_engines(model):
        return "the models are on engines, whose gates say nothing of tokens within a step"
    if cast("RoutedModel", model).translation is not None:
        return "the tokenizers differ, so the models do not read the same tokens"
    return None


def read_again(model: AnyPair, prompt: str, result: Result, *, both: bool) -> list[ReadStep | None]:
    """Reads the steps of a result, each model in one pass over all tokens.

    Args:
        model: The pair, of one vocabulary, in this process.
        prompt: Of the result.
        result: What was written.
        both: Whether the large model reads it, too.

    Returns:
        One a step; None for a step without tokens.
    """
    import torch

    from glimprouter.hf.pair.locks import exclusive
    from glimprouter.hf.pair.prompts import encode_prompt

    own = cast("RoutedModel", model)
    encoded = encode_prompt(prompt, own.tokenizer, own.large_tokenizer)
    counts = [step.num_tokens for step in result.trace.steps]
    written = result.token_ids[: sum(counts)]
    with torch.inference_mode(), exclusive(own.small, own.large):
        small = _Reading.of(own.small, encoded.small, written)
        large = _Reading.of(own.large, encoded.large, written) if both else None
    return [_step(small, large, part) for part in _parts(counts)]


def _parts(counts: Sequence[int]) -> Iterator[slice]:
    start = 0
    for count in counts:
        yield slice(start, start + count)
        start += count


def _step(small: _Reading, large: _Reading | None, part: slice) -> ReadStep | None:
    if part.start == part.stop:
        return None
    agrees = None
    if large is not None:
        same = small.likeliest[part] == large.likeliest[part]
        agrees = "".join("1" if each else "0" for each in same.tolist())
    entropies, loss = small.entropies[part], -small.log_probs[part].mean()
    return ReadStep(float(entropies[0]), float(entropies.mean()), float(loss.exp()), agrees)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Of each written token, [tokens]: float64 entropy, float64 log-probability, likeliest id."""

    entropies: torch.Tensor
    log_probs: torch.Tensor
    likeliest: torch.Tensor

    @classmethod
    def of(cls, model: Any, prompt: Sequence[int], written: Sequence[int]) -> _Reading:
        """One model's reading."""
        import torch

        ids = [*prompt, *written]
        found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        cache: Any = None
        for start in range(0, len(ids) - 1, CHUNK):
            chunk = torch.tensor([ids[start : start + CHUNK]], device=model.device)
            output = model(input_ids=chunk, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            following = torch.tensor(ids[start + 1 : start + CHUNK + 1])
            logits = output.logits[0, : len(following)].double().cpu()
            log_probs = logits.log_softmax(-1)
            entropies = torch.special.entr(log_probs.exp()).sum(-1)
            own = log_probs.gather(1, following[:, None])[:, 0]
            found.append((entropies, own, log_probs.argmax(-1)))
        columns = (torch.cat(column)[len(prompt) - 1 :] for column in zip(*found, strict=True))
        return cls(*columns)
