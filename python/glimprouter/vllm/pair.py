"""Two engines as a pair: checked, with what their tokenizers need."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from glimprouter.boundary import StepBoundary
from glimprouter.hf.pair.boundaries import boundaries_of
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.thinking import ThinkingFormat, formats_of
from glimprouter.hf.pair.translation import Translation
from glimprouter.vllm.engines.base import EngineFacts
from glimprouter.vllm.engines.checked import CheckedEngine
from glimprouter.vllm.protocol import BoundarySpec, GateOptions, fingerprint


@dataclass(frozen=True)
class EnginePair:
    """A pair that fits together, and whose gates answer.

    Attributes:
        engines: By name.
        facts: Of each.
        boundaries: Of the small and the large model; the same one where they agree.
        formats: Of their thinking; None for a model without.
        translation: Of their vocabularies; None where both have the same.
        common: Of each model's requests: boundary and hand-off token.
    """

    engines: Mapping[str, CheckedEngine]
    facts: Mapping[str, EngineFacts]
    boundaries: Sequence[StepBoundary]
    formats: Sequence[ThinkingFormat | None]
    translation: Translation | None
    common: Mapping[str, GateOptions]

    @property
    def contexts(self) -> dict[str, int]:
        """Positions of each model."""
        return {name: facts.context for name, facts in self.facts.items()}

    def description(self) -> dict[str, dict[str, str]]:
        """What must be the same where a saved sequence goes on."""
        return {
            name: {"model": facts.model, "tokens": fingerprint(boundary)}
            for (name, facts), boundary in zip(self.facts.items(), self.boundaries, strict=True)
        }

    def stop_token_ids(self, model: str, *, answering: bool) -> list[int]:
        """Ids at which a request to a model ends, whatever the gate says."""
        boundary = self.boundaries[MODELS.index(model)]
        ids = {self.common[model].handoff, *boundary.eos_ids}
        return sorted(ids if answering else ids.union(boundary.think_end_ids))


async def pair_of(
    engines: Mapping[str, CheckedEngine],
    tokenizers: Sequence[Any],
    thinking: str | ThinkingFormat | None,
    eos_token_ids: Sequence[int] | Mapping[str, Sequence[int]] | None,
) -> EnginePair:
    """Asks both engines, and makes what their tokenizers need.

    Args:
        engines: By name.
        tokenizers: Of the small and the large model.
        thinking: As in :class:`RoutedEngines`.
        eos_token_ids: Likewise.

    Raises:
        EngineLost: One does not answer.
        EngineRefused: One is of another model or version, or has no gate.
        ValueError: Tokenizers that do not make a pair.
    """
    known = await asyncio.gather(*(engines[name].facts() for name in MODELS))
    facts = dict(zip(MODELS, known, strict=True))
    formats = formats_of(thinking, tokenizers)
    models = [_with_ends(f, t) for f, t in zip(known, tokenizers, strict=True)]
    boundaries = boundaries_of(tokenizers, models, eos_token_ids, formats)
    shared = boundaries[0] is boundaries[1]
    translation = None if shared else Translation(tokenizers, boundaries)
    common = {}
    for place, name in enumerate(MODELS):
        boundary, format = boundaries[place], formats[0 if shared else place]
        spec = BoundarySpec(
            None if format is None else format.start,
            None if format is None else format.end,
            None if format is None else format.close,
            tuple(boundary.eos_ids),
        )
        common[name] = GateOptions(spec, _handoff(tokenizers[0 if shared else place], boundary))
    pair = EnginePair(engines, facts, boundaries, formats, translation, common)
    await asyncio.gather(*(_greet(pair, place) for place in range(len(MODELS))))
    return pair


async def _greet(pair: EnginePair, place: int) -> None:
    name = MODELS[place]
    hello = dataclasses.replace(pair.common[name], hello=fingerprint(pair.boundaries[place]))
    await pair.engines[name].expect(hello)


def _with_ends(facts: EngineFacts, tokenizer: Any) -> Any:
    """Something with the generation config of a model: an engine's own, or the tokenizer's."""
    ends: Any = list(facts.eos_ids)
    if not ends:
        ends = _configured_ends(tokenizer)
    return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ends))


def _configured_ends(tokenizer: Any) -> Any:
    """Of the generation config beside a tokenizer: a server does not tell its own."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(tokenizer.name_or_path).eos_token_id
    except (OSError, ValueError):
        return None


def _handoff(tokenizer: Any, boundary: StepBoundary) -> int:
    """The id that ends a request: rather one that a model does not write where a step starts."""
    taken = {*boundary.eos_ids, *boundary.think_end_ids, *boundary.think_start_ids}
    special: list[int] = sorted(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)
    free = [token for token in special if token not in taken]
    return next(iter([*free, *special, *boundary.eos_ids, boundary.vocab_size - 1]))
