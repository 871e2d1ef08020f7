"""SpecCoT: the small model drafts a step several times, the large model picks the likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence

from glimprouter.chains.candidate_rule import CandidateRule, Choice
from glimprouter.config import check_integer
from glimprouter.policies import Aside, WrittenStep
from glimprouter.policies.checks import check_score


class SpecCoT(CandidateRule):
    """Keeps the draft with the highest mean log-probability under the large model.

    With k drafts of a step behind the same text, the score of one of N tokens is ``1/N sum ln
    p_large(token | text before)``. If the best is below the threshold, all are rejected and the
    large model writes the step. The large model reads each draft once and writes nothing for that.
    White space alone, where a budget has cut a draft off, scores ``-inf``.
    Published as SpecCoT (speculative chains of thought: drafts by a small model, the selection by
    the large one); here the selection is by likelihood, and needs no prompt. Drafts need a
    temperature above 0 and one vocabulary for both models.
    """

    aside = Aside(tokens=True)

    def __init__(self, candidates: int = 4, threshold: float = -math.inf) -> None:
        """The rule.

        Args:
            candidates: Drafts of each step, >= 2.
            threshold: Least score of a draft that stays, nats; -inf keeps the best of each step.

        Raises:
            TypeError: A number of another type.
            ValueError: Out of range.
        """
        check_integer("candidates", candidates, 2)
        check_score("threshold", threshold)
        self.candidates = candidates
        self.threshold = threshold

    def choose(self, drafts: Sequence[WrittenStep]) -> Choice | None:
        """The likeliest, the first of equals; None where even that is below the threshold."""
        scores = self._scores(drafts)
        best = max(scores)
        return Choice(scores.index(best), scores) if best >= self.threshold else None

    def settle(self, drafts: Sequence[WrittenStep], large: WrittenStep) -> Choice:
        """The large model's, once the drafts were rejected."""
        return Choice(None, self._scores(drafts))

    def compared(self, choice: Choice) -> float:
        """The best score."""
        return max(choice.scores, default=math.nan)

    def _scores(self, drafts: Sequence[WrittenStep]) -> list[float]:
        scores = []
        for draft in drafts:
            if draft.aside is None:  # white space alone, which a budget has cut off
                scores.append(-math.inf)
                continue
            check_score("the score of a draft", draft.aside.mean_logprob)
            scores.append(draft.aside.mean_logprob)
        return scores
