"""Whether and how the small model of a pair drafts: the option ``drafts``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glimprouter.config import MOST_DRAFTS
from glimprouter.hf.run.costs import PassCosts

# What a pass of the large model costs in passes of the small one until it is measured, or where
# turns shall not follow the clock: 3.4 of a 4B and a 32B on an H200. Of the demo pair on a CPU it
# is 9 for one row (168 us and 18) and 12 for sixteen. No number is right for all, and another one
# would change the passes, and so the rounding, of runs with a fixed number of drafts.
_ASSUMED_RATIO = 4.0


@dataclass(frozen=True)
class Drafting:
    """How it drafts.

    Attributes:
        most: Drafts of a sequence that wait to be verified, at most.
        measures: Whether turns follow the clock.
    """

    most: int
    measures: bool

    def costs(self) -> PassCosts:
        """Of the passes of one run."""
        return PassCosts({"small": 1.0, "large": _ASSUMED_RATIO}, measures=self.measures)


def check_drafts(drafts: Any) -> None:
    """Refuses what no pair could have.

    Raises:
        TypeError: Neither a number nor text.
        ValueError: Out of range.
    """
    number = isinstance(drafts, int) and not isinstance(drafts, bool)
    wanted = f'drafts must be "auto" or an integer in [0, {MOST_DRAFTS}], got {drafts!r}'
    if not number and not isinstance(drafts, str):
        raise TypeError(wanted)
    if (number and not 0 <= drafts <= MOST_DRAFTS) or (not number and drafts != "auto"):
        raise ValueError(wanted)


def drafting_of(drafts: int | str, *, possible: bool) -> Drafting | None:
    """What an option means for a pair; None where the small model does not draft.

    Args:
        drafts: ``"auto"``, or a number.
        possible: Whether both models can drop what they computed of drafts that did not hold.

    Raises:
        ValueError: Drafts are wanted of a pair that cannot have them.
    """
    if drafts == 0 or (drafts == "auto" and not possible):
        return None
    if not possible:
        raise ValueError(
            f"drafts={drafts} needs models that can drop what they have computed of drafts that do"
            " not hold; one of this pair keeps a state that cannot be cut, or keys that depend on"
            ' how long a pass is (longrope): drafts="auto" or 0'
        )
    if drafts == "auto":
        return Drafting(MOST_DRAFTS, measures=True)
    return Drafting(int(drafts), measures=False)
