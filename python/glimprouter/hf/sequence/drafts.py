"""What the small model has drafted for a sequence that waits for the large one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

# Drafts that held, and all of them, which are assumed of a sequence that has verified nothing yet.
# Measured on trained pairs: nearly all hold but for the first token of a step, where three of four
# do.
_ASSUMED_HELD = (4.9, 3.0)
_ASSUMED_TRIED = (5.0, 4.0)


@dataclass(slots=True)
class Acceptance:
    """How often the drafts of a sequence hold.

    Attributes:
        held: Drafts that did: of all but the first tokens of steps, then of these.
        tried: Drafts that were compared with what the large model wrote, likewise.
    """

    held: list[float] = field(default_factory=lambda: list(_ASSUMED_HELD))
    tried: list[float] = field(default_factory=lambda: list(_ASSUMED_TRIED))

    def note(self, *, first: bool, held: bool) -> None:
        """One draft was compared.

        Args:
            first: Whether it was the first token of a step.
            held: Whether it was the same.
        """
        self.held[first] += held
        self.tried[first] += 1

    def chance(self, *, first: bool) -> float:
        """That the next draft holds, if all before it do."""
        return self.held[first] / self.tried[first]


@dataclass(slots=True)
class Drafts:
    """Drafts of one sequence, and what became of earlier ones.

    Attributes:
        own: Those that wait to be verified, as the small model has them.
        ids: The same in the large model's vocabulary.
        room: Tokens that the large model may write, at most, before another is asked.
        ended: Whether another draft would be of no use, or cannot be had: the next token ends the
            step, as far as the small model knows.
        drafted: Drafts made so far.
        compared: Among these, those that were compared with what the large model wrote.
        accepted: Among these, those that it wrote, too.
        acceptance: How often they hold.
    """

    own: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    room: int = 0
    ended: bool = False
    drafted: int = 0
    compared: int = 0
    accepted: int = 0
    acceptance: Acceptance = field(default_factory=Acceptance)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Drafts:
        """Of what ``dataclasses.asdict`` gave."""
        return cls(**{**state, "acceptance": Acceptance(**state["acceptance"])})

    def copy(self) -> Drafts:
        """The same, on its own."""
        return copy.deepcopy(self)

    def __len__(self) -> int:
        """Drafts that wait to be verified."""
        return len(self.ids)

    def takes_more(self, most: int) -> bool:
        """Whether another draft may follow, of at most so many."""
        return not self.ended and len(self) < min(most, self.room - 1)

    def add(self, own: int, image: int) -> None:
        """One draft more, as both models have it."""
        self.own.append(own)
        self.ids.append(image)
        self.drafted += 1

    def clear(self) -> None:
        """None waits any more."""
        self.own.clear()
        self.ids.clear()
        self.ended = False

    def settle(self, held: int, *, at_start: bool) -> None:
        """The first so many have held, and the one behind them, if any, has not.

        Args:
            held: Drafts that the large model wrote, too.
            at_start: Whether the first draft was the first token of a step.
        """
        compared = min(held + 1, len(self))
        for place in range(compared):
            self.acceptance.note(first=at_start and place == 0, held=place < held)
        self.compared += compared
        self.accepted += held
        self.clear()

    def chances(self, *, at_start: bool) -> list[float]:
        """For each draft, and the one that could follow, that it and all before it hold."""
        others = self.acceptance.chance(first=False)
        first = self.acceptance.chance(first=True) if at_start else others
        return [first * others**place for place in range(len(self) + 1)]
