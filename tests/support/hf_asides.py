"""A policy that asks the large model, and what it was told: what the tests of asides share."""

from __future__ import annotations

from typing import Any

from glimprouter.policies import Judgement, SpecReason, Verdict, WrittenStep


class Graded(SpecReason):
    """Remembers the steps that it was asked about; ``forced`` is said whatever the grade."""

    def __init__(self, threshold: float = 4.5, *, forced: Verdict | None = None, **own: Any):
        super().__init__(threshold, **{"expected": True, **own})
        self.forced, self.steps = forced, list[WrittenStep]()

    def after(self, step: WrittenStep) -> Verdict | Judgement:
        self.steps.append(step)
        verdict = super().after(step)
        if self.forced is None or not isinstance(verdict, Judgement):
            return verdict
        return Judgement(self.forced, verdict.score)

    def grades(self) -> dict[tuple[int, int], float]:
        asked = [step for step in self.steps if step.aside is not None]
        return {(s.substream, s.index): self.grade(s.aside) for s in asked if s.aside is not None}
