"""The tokens of sequences whose keys and values lie in the slots of two caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glimprouter.hf.engine.gather_cache import SlotCache
from glimprouter.hf.engine.gather_runner import ModelRunner
from glimprouter.hf.engine.native_cache import NativeCache
from glimprouter.hf.engine.native_runner import NativeRunner
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.sequence.saved import bytes_as_tensor, tensor_as_bytes
from glimprouter.kv import TokenLedger, VocabularyMap

_LEDGER, _EXCESS = "ledger", "excess"  # names in what is saved


@dataclass
class _Sequence:
    """One of them.

    Attributes:
        prompts: Prompts of each model.
        ledger: What was generated.
        excess: Excess tokens of each model.
    """

    prompts: list[list[int]]
    ledger: TokenLedger
    excess: list[int]


class GatherTokens:
    """Does for slots what :class:`glimprouter.KvCache` does for pages, with the same methods."""

    def __init__(
        self,
        runners: Sequence[ModelRunner | NativeRunner],
        num_slots: int,
        vocabulary_map: VocabularyMap | None,
    ) -> None:
        """No sequences.

        Args:
            runners: Runners of both models: a sequence has the same slot in the caches of both.
            num_slots: Slots of these caches.
            vocabulary_map: Map of the models; None where both have the same.
        """
        self._runners = runners
        self._caches: list[SlotCache | NativeCache] = [runner.cache for runner in runners]
        self._map = vocabulary_map
        self._open: list[_Sequence | None] = [None] * num_slots  # by slot

    def _at(self, sequence: int) -> _Sequence:
        held = self._open[sequence]
        assert held is not None
        return held

    def _empty(self, slot: int) -> None:
        for cache in self._caches:
            cache.free(slot)

    def open(self, prompts: Sequence[Sequence[int]]) -> int:
        """A sequence in the first free slot."""
        slot = self._open.index(None)
        held = _Sequence([list(ids) for ids in prompts], TokenLedger(self._map), [0] * len(prompts))
        for cache, ids in zip(self._caches, prompts, strict=True):
            cache.open(slot, len(ids))
        self._open[slot] = held
        return slot

    def close(self, sequence: int) -> None:
        """Empties the slot in both caches."""
        self._empty(sequence)
        self._open[sequence] = None

    def fork(self, sequence: int) -> int:
        """Copies the slots of both models."""
        held, slot = self._at(sequence), self._open.index(None)
        try:
            for cache in self._caches:
                cache.copy(sequence, slot)
        except BaseException:
            self._empty(slot)
            raise
        self._open[slot] = _Sequence(held.prompts, held.ledger.copy(), list(held.excess))
        return slot

    def save(self, sequence: int) -> dict[str, torch.Tensor]:
        """Keys and values as ``"<model>.<layer>.keys"``, the ledger, and the excess ``[2]``."""
        held = self._at(sequence)
        memory = {
            _LEDGER: bytes_as_tensor(held.ledger.save()),
            _EXCESS: torch.tensor(held.excess),
        }
        for name, cache in zip(MODELS, self._caches, strict=True):
            parts = cache.read(sequence)
            memory.update({f"{name}.{part}": tensor for part, tensor in parts.items()})
        return memory

    def load(self, prompts: Sequence[Sequence[int]], memory: dict[str, torch.Tensor]) -> int:
        """A sequence from what :meth:`save` gave.

        Raises:
            ValueError: It is of models with another number of layers, or of another ledger.
        """
        ledger = TokenLedger.load(tensor_as_bytes(memory[_LEDGER]), self._map)
        slot = self._open.index(None)
        try:
            for name, runner in zip(MODELS, self._runners, strict=True):
                mine = (part for part in memory if part.startswith(f"{name}."))
                parts = {p.removeprefix(f"{name}."): memory[p].to(runner.device) for p in mine}
                runner.cache.restore(slot, parts)
        except BaseException:
            self._empty(slot)
            raise
        excess: list[int] = memory[_EXCESS].tolist()
        self._open[slot] = _Sequence([list(ids) for ids in prompts], ledger, excess)
        return slot

    def num_bytes(self, sequence: int) -> int:
        """Memory of the states that models keep in caches of their own."""
        native = [cache for cache in self._caches if isinstance(cache, NativeCache)]
        return sum(cache.num_bytes(sequence) for cache in native)

    def append(self, model: int, sequence: int, ids: Any) -> None:
        """Tokens that a model wrote."""
        self._at(sequence).ledger.append(model, ids)

    def caught_up(self, model: int, sequence: int) -> bool:
        """Whether all that was written is in the model's vocabulary."""
        return self._at(sequence).ledger.caught_up(model)

    def pending_spans(self, model: int, sequence: int) -> list[bytes]:
        """Texts that are not in the model's vocabulary yet."""
        return self._at(sequence).ledger.pending_spans(model)

    def resolve(self, model: int, sequence: int, spans: Sequence[Sequence[int]]) -> None:
        """The tokens of these texts; what was computed of other tokens there is dropped."""
        held = self._at(sequence)
        kept = len(held.prompts[model]) + held.ledger.resolve(model, spans)
        held.excess[model] += self._caches[model].truncate(sequence, kept)

    def truncate(self, sequence: int, generated: int) -> None:
        """Drops the generated tokens behind so many, and what was computed of them."""
        held = self._at(sequence)
        cuts = held.ledger.truncate(generated)
        for model, cache in enumerate(self._caches):
            ids, spoiled = cuts[model if self._map else 0]
            dropped = cache.truncate(sequence, len(held.prompts[model]) + ids)
            held.excess[model] += min(dropped, spoiled)

    def forget(self, model: int, sequence: int, count: int) -> None:
        """Drops what the model has computed of the last tokens."""
        cache = self._caches[model]
        cache.truncate(sequence, cache.lengths[sequence] - count)

    def frontier(self, sequence: int) -> int:
        """Generated tokens, each in its writer's vocabulary."""
        return len(self._at(sequence).ledger)

    def length(self, model: int, sequence: int) -> int:
        """Tokens in the model's vocabulary, prompt included."""
        held = self._at(sequence)
        return len(held.prompts[model]) + held.ledger.count(model)

    def generated(self, model: int, sequence: int) -> list[int]:
        """Generated tokens in the model's vocabulary."""
        return self._at(sequence).ledger.ids(model)

    def unseen(self, model: int, sequence: int) -> list[int]:
        """Tokens that the model has not computed."""
        held, seen = self._at(sequence), self._caches[model].lengths[sequence]
        prompt = held.prompts[model]
        return prompt[seen:] + held.ledger.ids(model, max(0, seen - len(prompt)))

    def num_computed_tokens(self, model: int, sequence: int) -> int:
        """Tokens whose keys and values there are."""
        return self._caches[model].lengths[sequence]

    def retokenized(self, model: int, sequence: int) -> int:
        """Tokens that a tokenizer had to write, for none of the model's own was the same."""
        return self._at(sequence).ledger.retokenized(model)

    def excess(self, model: int, sequence: int) -> int:
        """Tokens that were computed, and then replaced by others."""
        return self._at(sequence).excess[model]

    def recomputed(self, model: int, sequence: int) -> int:
        """Tokens that were computed again, for want of a state to go on from."""
        return self._caches[model].recomputed(sequence)
