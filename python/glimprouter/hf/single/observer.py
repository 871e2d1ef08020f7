"""Looking at a model's glimpses under plain ``generate()``, before a pair is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import LogitsProcessor

from glimprouter.boundary import StepBoundary
from glimprouter.calibration.shares import share_above
from glimprouter.config import RouterConfig
from glimprouter.glimpse import Status, glimpse
from glimprouter.hf.pair.text import decode
from glimprouter.hf.single.observed_row import ObservedRow
from glimprouter.trace import Trace, TraceStep


@dataclass(frozen=True, slots=True)
class ObservedGlimpse:
    """The first token of a step.

    Attributes:
        step: Index of the step, from 0.
        token_index: Index among the generated tokens.
        token_id: The token that was chosen.
        entropy: Entropy of the distribution that it came from, in nats.
        route: Who would write the step at the threshold, ``"small"`` or ``"large"``.
    """

    step: int
    token_index: int
    token_id: int
    entropy: float
    route: Literal["small", "large"]


@dataclass(frozen=True, slots=True)
class GlimpseSummary:
    """All glimpses of all sequences; NaN without any.

    Attributes:
        glimpses: How many.
        large_share: Share of them that would go to a large model, in [0, 1].
        mean: Mean of the entropies in nats.
        quartiles: Quartiles of the entropies in nats: a quarter, half, three quarters lie below.
    """

    glimpses: int
    large_share: float
    mean: float
    quartiles: tuple[float, float, float]


class GlimpseObserver(LogitsProcessor):
    """Pass it to ``model.generate(logits_processor=[observer])``: it changes nothing and looks.

    Each row of the batch is one sequence; its steps are found by the rules of the router, without
    limits (no cap of a step, no budget). ``generate`` runs its own processors of penalties and
    forbidden tokens (``repetition_penalty``, ``min_new_tokens``, ``bad_words_ids``, ...) before
    those of the caller, and temperature, top-k, top-p and the like behind them: so the entropy is
    that of the model's raw logits unless one of the former is in use. A processor sees a token when
    the next one is chosen; :meth:`finish` tells the observer the last one.

    One observer watches one call of ``generate`` at a time; :meth:`reset` readies it for another.
    Beams and assisted generation rearrange what was seen and are refused as soon as they do.
    """

    def __init__(
        self,
        boundary: StepBoundary | Any,
        *,
        threshold: float = 1.0,
        comparison: Literal[">", ">="] = ">",
        entropy_top_k: int | None = None,
        every_token: bool = False,
    ) -> None:
        """Has seen nothing.

        Args:
            boundary: A :class:`glimprouter.StepBoundary` (with every id that ends a sequence of
                the model), or a tokenizer that has one; only the latter knows text.
            threshold: tau in nats, of the would-be routes.
            comparison: As in :class:`glimprouter.RouterConfig`.
            entropy_top_k: As in :class:`glimprouter.RouterConfig`.
            every_token: Compute the entropy at every token, not only at the first of steps.

        Raises:
            TypeError: An option of the wrong type.
            ValueError: An option out of range, or a tokenizer without the markers of thinking.
        """
        config = RouterConfig(
            threshold=threshold, comparison=comparison, entropy_top_k=entropy_top_k
        )
        own = isinstance(boundary, StepBoundary)
        self.boundary = boundary if own else StepBoundary.from_tokenizer(boundary)
        self.threshold = float(np.float32(config.threshold))  # as the router compares it
        self._tokenizer = None if own else boundary
        self._config = config
        self._every_token = every_token
        self._rows: list[ObservedRow] = []
        self._seen: torch.Tensor | None = None

    def reset(self) -> None:
        """Forgets every sequence."""
        self._rows, self._seen = [], None

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Looks at the logits of the next token of every row.

        Args:
            input_ids: int64 ``[B, T]``, prompt and padding included.
            scores: ``[B, V]``.

        Returns:
            ``scores`` itself.

        Raises:
            ValueError: Not the continuation of what was seen: another call without
                :meth:`reset`, beams, or assisted generation.
            RuntimeError: Logits with NaN, +inf or only -inf.
        """
        if self._seen is None:
            self._rows = [ObservedRow(self.boundary) for _ in range(input_ids.shape[0])]
            self._seen = input_ids.clone()
        else:
            self._commit(input_ids)
        wanted = [
            index
            for index, row in enumerate(self._rows)
            if row.at_step_start or (self._every_token and not row.done)
        ]
        if wanted:
            for index, entropy in zip(wanted, self._entropies(scores, wanted), strict=True):
                self._rows[index].observe(entropy, keep=self._every_token)
        return scores

    def _entropies(self, scores: torch.Tensor, rows: Sequence[int]) -> list[float]:
        logits = scores if len(rows) == len(self._rows) else scores[list(rows)]
        seen = glimpse(logits.cpu().contiguous(), entropy_top_k=self._config.entropy_top_k)
        for row, status in zip(rows, seen.status.tolist(), strict=True):
            if status != Status.OK:
                fault = Status(status).name.lower().replace("_", " ")
                raise RuntimeError(f"row {row}: the model gave logits with a fault ({fault})")
        values: list[float] = seen.entropy.tolist()
        return values

    def _commit(self, input_ids: torch.Tensor) -> None:
        assert self._seen is not None
        rows, length = self._seen.shape
        if input_ids.shape != (rows, length + 1) or not torch.equal(
            input_ids[:, :length], self._seen
        ):
            raise ValueError(
                "these ids do not continue the sequences that were seen: call reset() before"
                " another generate(); beams and assisted generation cannot be observed"
            )
        self._seen = input_ids.clone()
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            row.commit(token)

    def finish(self, sequences: Any) -> None:
        """Takes the last token from what ``generate`` returned.

        Args:
            sequences: The tensor ``[B, T]``, or the output object that holds it.

        Raises:
            ValueError: Not the result of the call that was watched.
        """
        if self._seen is None:
            raise ValueError("nothing was observed; call generate(logits_processor=[observer])")
        self._commit(getattr(sequences, "sequences", sequences))

    @property
    def num_sequences(self) -> int:
        """Rows of the batch."""
        return len(self._rows)

    def _route(self, entropy: float) -> Literal["small", "large"]:
        above = (
            entropy > self.threshold
            if self._config.comparison == ">"
            else entropy >= self.threshold
        )
        return "large" if above else "small"

    def glimpses(self, sequence: int) -> list[ObservedGlimpse]:
        """The glimpses of a sequence, in order.

        Raises:
            IndexError: No such row.
        """
        row = self._rows[sequence]
        return [
            ObservedGlimpse(
                index,
                step.glimpse,
                row.tokens[step.glimpse],
                step.entropy,
                self._route(step.entropy),
            )
            for index, step in enumerate(row.steps)
        ]

    def token_entropies(self, sequence: int) -> list[float]:
        """Entropy of the distribution of every generated token in nats, with ``every_token=True``.

        Raises:
            IndexError: No such row.
            ValueError: They were not computed.
        """
        if not self._every_token:
            raise ValueError("construct the observer with every_token=True")
        row = self._rows[sequence]
        return row.entropies[: len(row.tokens)]

    def entropies(self) -> npt.NDArray[np.float32]:
        """Entropies of all glimpses of all sequences in nats, ascending."""
        values = [step.entropy for row in self._rows for step in row.steps]
        return np.sort(np.array(values, np.float32))

    def summary(self) -> GlimpseSummary:
        """The glimpses in four numbers; for another threshold see :func:`calibrate`."""
        values = self.entropies()
        if len(values) == 0:
            return GlimpseSummary(0, math.nan, math.nan, (math.nan,) * 3)
        quarter, half, three = np.quantile(values.astype(np.float64), (0.25, 0.5, 0.75))
        return GlimpseSummary(
            len(values),
            share_above(values, self.threshold, self._config.comparison),
            float(values.mean(dtype=np.float64)),
            (float(quarter), float(half), float(three)),
        )

    def trace(self, sequence: int) -> Trace:
        """A sequence as the record that ``glimprouter trace`` shows.

        ``model`` of a step is its would-be writer; the small one wrote everything. No times.

        Raises:
            IndexError: No such row.
            ValueError: The observer was made from a boundary: it has no text.
        """
        if self._tokenizer is None:
            raise ValueError("text needs a tokenizer: GlimpseObserver(tokenizer)")
        row = self._rows[sequence]
        steps = [
            TraceStep(
                index=index,
                model=self._route(step.entropy),
                entropy=step.entropy,
                threshold=self.threshold,
                text=decode(self._tokenizer, row.tokens[step.start : step.end]),
                num_tokens=step.end - step.start,
                seconds=0.0,
                end_reason="interrupted" if step.end_reason == "none" else step.end_reason,
            )
            for index, step in enumerate(row.steps)
        ]
        answer = row.tokens[row.answer_start :] if row.answer_start >= 0 else []
        return Trace(
            substream=sequence,
            threshold=self.threshold,
            steps=steps,
            answer=decode(self._tokenizer, answer, skip_special=True).strip(),
            answer_model="small",
            answer_tokens=len(answer),
            total_tokens=len(row.tokens),
            end_reason=row.end_reason if row.done else "interrupted",
        )
