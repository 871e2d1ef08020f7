"""Forward passes of one model for many sequences: catch up with the frontier, return logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from glimprouter.hf.engine.gather_cache import ForwardPlan, SlotCache
from glimprouter.hf.pair.facts import rope_depends_on_length, unserved_layer
from glimprouter.hf.trial.trial import Trial

_MASKED_ATTENTION = {"sdpa", "eager"}  # implementations that take an explicit mask


def why_not_gathered(model: Any, trial: Trial) -> str | None:
    """Why plain attention over a cache of ours does not serve a model, or None: found by trying.

    Args:
        model: A model of transformers.
        trial: Of this model.
    """
    if (unserved := unserved_layer(model)) is not None:
        return f"it has layers of type {unserved!r}, which keep more than keys and values"
    return trial.why_not(lambda lengths: ModelRunner("trial", model, len(lengths)).forward)


class ModelRunner:
    """One model and the KV cache of its sequences.

    A row is brought to the frontier by one prefill over exactly the tokens that this model has not
    seen (DESIGN: no token is computed twice by the same model); the last position's logits are what
    the router wants.
    """

    def __init__(self, name: str, model: Any, num_slots: int) -> None:
        """Empty slots.

        Args:
            name: Name of the model in the pair.
            model: One that :func:`why_not_gathered` has nothing against.
            num_slots: Slots for sequences.
        """
        self.name = name
        self.model = model
        self.device = model.device
        self.config = model.config.get_text_config()
        self.layer_types: list[str] = list(getattr(self.config, "layer_types", None) or ())
        self.window: int | None = getattr(self.config, "sliding_window", None)
        if getattr(self.config, "use_sliding_window", True) is False:
            self.window = None
        self.batches = (
            self.config._attn_implementation in _MASKED_ATTENTION
            and not rope_depends_on_length(self.config)
        )
        self.cache = SlotCache(self.config.num_hidden_layers, num_slots)
        self.dtype: torch.dtype = model.dtype

    @torch.inference_mode()
    def forward(
        self,
        slots: Sequence[int],
        unseen: Sequence[Sequence[int]],
        wanted: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Computes the unseen tokens of each slot.

        Args:
            slots: ``[B]``, distinct.
            unseen: ``[B]`` lists of the ids behind what the slot holds, each at least one.
            wanted: ``[B]`` tokens at the end of each whose logits are wanted; None for the last.

        Returns:
            Logits of these tokens, row behind row, in the model's dtype.
        """
        ends = [1] * len(slots) if wanted is None else wanted
        counts = [len(ids) for ids in unseen]
        length = max(counts)
        ids = [[*row, *[0] * (length - len(row))] for row in unseen]
        plan = self.cache.begin(slots, counts, self.device)
        places = [
            (row, count - behind)
            for row, (count, end) in enumerate(zip(counts, ends, strict=True))
            for behind in range(end, 0, -1)
        ]
        last = sorted({position for _, position in places})
        end = max(start + count for start, count in zip(plan.starts, counts, strict=True))
        output = self.model(
            input_ids=torch.tensor(ids, device=self.device),
            attention_mask=self._mask(plan),
            position_ids=plan.positions.clamp(max=end - 1),  # padding may reach past the context
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1 if len(last) == 1 and last[0] == length - 1 else torch.tensor(last),
        )
        self.cache.commit(plan)
        logits: torch.Tensor = output.logits
        if len(last) == 1:
            return logits[:, -1]
        where = {position: index for index, position in enumerate(last)}
        return logits[[row for row, _ in places], [where[position] for _, position in places]]

    def _mask(self, plan: ForwardPlan) -> Any:
        """None for one row (the model makes its own); else additive, ``[B, 1, Q, K]``."""
        if len(plan.slots) == 1:
            return None
        keys = torch.arange(plan.key_length, device=self.device)
        queries = plan.positions[:, :, None]
        visible = keys <= queries
        full = self._additive(visible)
        if self.window is None or (
            self.layer_types and "sliding_attention" not in self.layer_types
        ):
            return full
        sliding = self._additive(visible & (keys > queries - self.window))
        if not self.layer_types:
            return sliding
        return {"full_attention": full, "sliding_attention": sliding}

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~visible, torch.finfo(self.dtype).min)[:, None]
