"""Forward passes of a model on caches of its own, one sequence after another."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from glimprouter.hf.engine.native_cache import NativeCache
from glimprouter.hf.trial.trial import Passes, Trial

_CACHES = ("past_key_values", "cache", "cache_params", "state")  # names of the argument
_USUAL = ("past_key_values", "position_ids", "logits_to_keep")


@dataclass(frozen=True)
class CallForm:
    """How a model is called so that it goes on from where its cache ends; the first that is right.

    Attributes:
        cache: Name of the argument, and of the output that has the cache afterwards.
        makes_cache: Whether the model makes its first cache itself.
        positions: Whether it is told the positions of the tokens.
        one_by_one: Whether tokens behind the first pass go in one at a time.
        consistent: Whether the model's passes with a cache are those without one. Where they are
            not, what is right is what ``generate()`` does: token by token.
    """

    cache: str
    makes_cache: bool
    positions: bool
    one_by_one: bool
    consistent: bool = True


def _takes(model: Any, name: str) -> bool:
    """Whether a model's forward() has an argument, as far as it says; a wrapper passes all on."""
    parameters = inspect.signature(model.forward).parameters
    if name in parameters:
        return True
    passes_on = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return passes_on and name in _USUAL


def _forms(model: Any) -> Iterator[CallForm]:
    """All that a model may take, the usual ones first."""
    named = inspect.signature(model.forward).parameters
    taken = [name for name in _CACHES if _takes(model, name)]
    for name in sorted(taken, key=lambda name: name not in named):  # those it names come first
        for one_by_one in (False, True):
            for makes_cache in (False, True):
                for positions in (True, False):
                    if not positions or _takes(model, "position_ids"):
                        yield CallForm(name, makes_cache, positions, one_by_one)


def find_form(model: Any, trial: Trial) -> tuple[CallForm | None, str | None]:
    """How a model goes on with a cache of its own, found by trying; or why it does not.

    Args:
        model: A model of transformers.
        trial: Of this model.
    """
    reason = f"its forward() takes no cache (none of {', '.join(_CACHES)})"
    for number, form in enumerate(_forms(model)):
        why_not = trial.why_not(partial(_passes, model, form))
        if why_not is None:
            return form, None
        if number == 0:
            reason = why_not
    for form in (replace(form, consistent=False) for form in _forms(model) if form.one_by_one):
        why_not = trial.why_not_itself(partial(_passes, model, form))
        if why_not is None:
            return form, None
        reason = f"{reason}; {why_not}"
        break
    return None, reason


def _passes(model: Any, form: CallForm, lengths: Sequence[int]) -> Passes:
    return NativeRunner("trial", model, len(lengths), form, 0).forward


class NativeRunner:
    """One model and the states of its sequences.

    Attributes:
        batches: False: a cache holds one sequence.
        cache: The states.
    """

    batches = False

    def __init__(
        self, name: str, model: Any, num_slots: int, form: CallForm, num_snapshots: int
    ) -> None:
        """Empty slots.

        Args:
            name: Name of the model in the pair.
            model: A model of transformers.
            num_slots: Slots for sequences.
            form: How it is called.
            num_snapshots: Snapshots of each sequence, where its state cannot be cut.
        """
        self.name = name
        self.model = model
        self.device = model.device
        self._form = form
        self._logits_to_keep = _takes(model, "logits_to_keep")
        config = model.config
        kept = (model, config, config.get_text_config(), config.get_text_config(decoder=True))
        self.cache = NativeCache(
            num_slots, num_snapshots, self._empty, self._first, kept, not form.consistent
        )

    def _empty(self) -> Any:
        if self._form.makes_cache:
            return None
        return DynamicCache(config=self.model.config.get_text_config(decoder=True))

    @torch.inference_mode()
    def _first(self) -> Any:
        return self._call(self._empty(), [0], 0)[1]

    @torch.inference_mode()
    def forward(self, slots: Sequence[int], unseen: Sequence[Sequence[int]]) -> torch.Tensor:
        """Computes the unseen tokens of each slot.

        Args:
            slots: ``[B]``, distinct.
            unseen: ``[B]`` lists of the ids behind what the slot holds, each at least one.

        Returns:
            Logits of the last token of each row, ``[B, V]`` in the model's dtype.
        """
        rows = zip(slots, unseen, strict=True)
        return torch.stack([self._go_on(slot, list(ids)) for slot, ids in rows])

    def _go_on(self, slot: int, ids: list[int]) -> torch.Tensor:
        logits: Any = None
        for piece in self.cache.pieces(slot, len(ids)):
            start = self.cache.lengths[slot]
            step = 1 if self._form.one_by_one and start else piece
            now, ids = ids[:piece], ids[piece:]
            try:
                state = self.cache.state(slot)
                for at in range(0, piece, step):
                    logits, state = self._call(state, now[at : at + step], start + at)
            except BaseException:
                self.cache.spoil(slot)
                raise
            self.cache.advance(slot, state, piece)
        return logits  # type: ignore[no-any-return]

    def _call(self, state: Any, ids: list[int], start: int) -> tuple[torch.Tensor, Any]:
        """Logits of the last token, ``[V]``, and the state behind it."""
        arguments: dict[str, Any] = {self._form.cache: state, "use_cache": True}
        if self._form.positions:
            positions = torch.arange(start, start + len(ids), device=self.device)
            arguments["position_ids"] = positions[None]
        if self._logits_to_keep:
            arguments["logits_to_keep"] = 1
        output = self.model(input_ids=torch.tensor([ids], device=self.device), **arguments)
        after = getattr(output, self._form.cache, None)
        if after is None and state is None:
            raise RuntimeError(f"it gives no {self._form.cache} back")
        # Some models write into what they are given, and say nothing of it.
        return output.logits[0, -1], state if after is None else after
