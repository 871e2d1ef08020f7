"""Whose turn it is where rows draft: the small model goes on as long as that pays.

A row that waits for the large model lets the small one draft its next tokens in passes that run
anyway; one pass of the large model verifies what all rows have drafted. Both passes cost nearly the
same for one token as for many, so the longer the large model waits, the more its pass brings, and
the less the small model's next one does: fewer rows write, and more drafts have ended.

A round begins when a row waits for the large model, and ends with a pass of that model. What a
round brings, tokens over time, is largest when the small model goes on exactly as long as its next
pass alone brings more than the round would that ended now. That is a view of one round; those that
follow gain from rows that do not idle, which is worth a factor found by simulation
(benchmarks/turns_simulation.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from glimprouter.hf.run.costs import PassCosts

_PATIENCE = 64  # passes of a model in a row while rows wait for the other
_WORTH_OF_BUSY_ROWS = 1.25


class WaitingRow(NamedTuple):
    """A row that waits for the large model.

    Attributes:
        drafts: Tokens drafted for it.
        takes_more: Whether another may follow.
        expected: Tokens that a pass of the large model would bring.
        next_chance: That the next draft holds, and all before it.
    """

    drafts: int
    takes_more: bool
    expected: float
    next_chance: float


class Turn(NamedTuple):
    """What runs next.

    Attributes:
        model: Whose pass.
        drafting: Of the rows that wait for the large model, by place: those that the small model
            drafts for.
    """

    model: str
    drafting: list[int]


class DraftedTurns:
    """Decides pass by pass; told what each pass brought."""

    def __init__(self, costs: PassCosts, patience: int = _PATIENCE) -> None:
        """No round has begun.

        Args:
            costs: Of the passes.
            patience: Passes of a model in a row while rows wait for the other, >= 1.
        """
        self._costs = costs
        self._patience = patience
        self._passes = 0  # of the small model in this round
        self._kept_waiting = 0  # passes of the large one, while rows waited for the small one
        self._written = self._cost = 0.0  # by them

    def note(self, model: str, tokens: int, written: float, seconds: float) -> None:
        """A pass is over.

        Args:
            model: Whose.
            tokens: It computed.
            written: Tokens of text that came of it.
            seconds: It took.
        """
        self._costs.note(model, tokens, seconds)
        if model == "large":
            self._begin_round()
        else:
            self._passes += 1
            self._written += written
            self._cost += self._costs.of(model, tokens)

    def choose(self, small: int, large: Sequence[WaitingRow]) -> Turn | None:
        """The next pass.

        Args:
            small: Rows that wait for the small model.
            large: Rows that wait for the large one.

        Returns:
            None when nobody waits.
        """
        if not large:
            self._begin_round()
            self._kept_waiting = 0
            return Turn("small", []) if small else None
        verified = sum(1 + row.drafts for row in large)
        cost = self._cost + self._costs.of("large", verified)
        rate = (self._written + sum(row.expected for row in large)) / cost
        drafting = self._worth_drafting(large, rate, self._token("small", "large"))
        brought = small + sum(large[place].next_chance for place in drafting)
        wanted = _WORTH_OF_BUSY_ROWS * rate * self._cost_of_small(small, len(drafting))
        pays = brought >= wanted
        waited = small > 0 and self._kept_waiting >= self._patience
        if (small or drafting) and (waited or (pays and self._passes < self._patience)):
            self._kept_waiting = 0
            return Turn("small", drafting)
        self._kept_waiting = self._kept_waiting + 1 if small else 0
        return Turn("large", [])

    def worth_drafting(self, large: Sequence[WaitingRow]) -> list[int]:
        """Rows, by place, whose next draft is worth its tokens in passes that run anyway."""
        return self._worth_drafting(large, self._rate(large), self._token("small", "large"))

    def worth_handing_over(
        self, handed: Sequence[WaitingRow], others: Sequence[WaitingRow]
    ) -> list[int]:
        """Rows, by place, that come to wait for the large model, whose first draft is worth it.

        The small model has its logits already: it costs a token of the large model's pass only.

        Args:
            handed: Those rows, without drafts.
            others: All other rows that wait for the large model.
        """
        rate = self._rate([*handed, *others])
        return self._worth_drafting(handed, rate, self._token("large"))

    def _begin_round(self) -> None:
        self._passes = 0
        self._written = self._cost = 0.0

    def _rate(self, large: Sequence[WaitingRow]) -> float:
        """What a pass of the large model would bring now, tokens over time."""
        verified = sum(1 + row.drafts for row in large)
        return sum(row.expected for row in large) / self._costs.of("large", max(verified, 1))

    def _token(self, *models: str) -> float:
        """What one token more costs in a pass of each of these."""
        return sum(self._costs.line(model)[1] for model in models)

    def _worth_drafting(self, large: Sequence[WaitingRow], rate: float, token: float) -> list[int]:
        """Rows whose next draft brings more than its own token costs."""
        return [
            place
            for place, row in enumerate(large)
            if row.takes_more and row.next_chance > rate * token
        ]

    def _cost_of_small(self, writing: int, drafting: int) -> float:
        """Of a pass of the small model, and of what it adds to that of the large one."""
        own = self._costs.of("small", writing + drafting)
        return own + self._costs.line("large")[1] * drafting
