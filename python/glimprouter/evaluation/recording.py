"""Policies that write down what they see, and the one that tells the forks of a step apart."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from glimprouter.config import ModelName
from glimprouter.policies import Glimpse, Judgement, Policy, Verdict, WrittenStep
from glimprouter.policies.base import reads_steps
from glimprouter.router import OutputField

__all__ = ["NO_DRAFT", "BySubstream", "Recording", "RecordingSteps", "recording", "signals_of"]

# Mean entropy, perplexity, score.
Draft: TypeAlias = tuple[float | None, float | None, float | None]
NO_DRAFT: Draft = (None, None, None)
SIGNALS = ("entropy", "max_prob", "margin", "varentropy")


def signals_of(glimpse: Glimpse | None) -> dict[str, Any]:
    """The four numbers of a glimpse; None each where there was none."""
    if glimpse is None:
        return dict.fromkeys(SIGNALS)
    values = {name: float(getattr(glimpse, name)) for name in SIGNALS}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


class Recording(Policy):
    """Decides as another policy and keeps the glimpses.

    Attributes:
        glimpses: By seed and random key of the sequence, then by step: the last one.
    """

    signals = OutputField.MAX_PROB | OutputField.MARGIN | OutputField.VARENTROPY

    def __init__(self, own: Policy) -> None:
        """Nothing is seen yet.

        Args:
            own: The rule that decides.
        """
        self._own = own
        self.glimpses: dict[tuple[int, int], dict[int, Glimpse]] = {}

    @property
    def name(self) -> str:
        """The rule's name."""
        return self._own.name

    def before(self, glimpse: Glimpse) -> ModelName:
        """As the rule decides."""
        writer = self._own.before(glimpse)
        self.glimpses.setdefault((glimpse.seed, glimpse.substream), {})[glimpse.step] = glimpse
        return writer


class RecordingSteps(Recording):
    """The same of a policy that reads steps when they are written.

    Attributes:
        drafts: Mean entropy, perplexity and score (None where the rule has none) of each step as
            the small model wrote it, by seed and random key of the sequence, then by step.
    """

    def __init__(self, own: Policy) -> None:
        """Nothing is seen yet.

        Args:
            own: The rule that decides.
        """
        super().__init__(own)
        self.aside = own.aside
        self.drafts: dict[tuple[int, int], dict[int, Draft]] = {}

    def after(self, step: WrittenStep) -> Verdict | Judgement:
        """As the rule decides."""
        verdict = self._own.after(step)
        if step.rewritable and len(step.entropies):
            own = self.drafts.setdefault((step.seed, step.substream), {})
            score = verdict.score if isinstance(verdict, Judgement) else None
            own[step.index] = step.mean_entropy, step.perplexity, score
        return verdict


def recording(own: Policy) -> Recording:
    """The recording policy for a rule, which reads steps only if the rule does."""
    return RecordingSteps(own) if reads_steps(own) else Recording(own)


class BySubstream(Policy):
    """The small model writes everything but what :meth:`give` gives to the large one.

    Attributes:
        glimpses: As of :class:`Recording`.
    """

    signals = Recording.signals

    def __init__(self) -> None:
        """Everything is the small model's."""
        self._large: dict[tuple[int, int], range] = {}
        self.glimpses: dict[tuple[int, int], dict[int, Glimpse]] = {}

    def give(self, key: tuple[int, int], steps: range) -> None:
        """Gives steps of a sequence, by its seed and random key, to the large model."""
        self._large[key] = steps

    def before(self, glimpse: Glimpse) -> ModelName:
        """By the random key."""
        key = (glimpse.seed, glimpse.substream)
        self.glimpses.setdefault(key, {})[glimpse.step] = glimpse
        return "large" if glimpse.step in self._large.get(key, ()) else "small"
