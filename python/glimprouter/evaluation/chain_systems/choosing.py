"""Systems that choose one of the two models for a whole problem."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from glimprouter.config import ModelName
from glimprouter.evaluation.chain_systems.base import ChainSystem, Finished, alone, outcome_of
from glimprouter.tasks import Problem

if TYPE_CHECKING:
    from glimprouter.hf import Result, RoutedModel

__all__ = ["ChoosesModel"]


class ChoosesModel(ChainSystem):
    """Reads the problem with the small model, then has one of the two solve it.

    The decision is 1 for a problem of the large model, else 0.
    """

    passes: int = 1  # of the small model over the problem, for the choice

    @abstractmethod
    def large(self, model: RoutedModel, problems: Sequence[Problem]) -> list[bool]:
        """Whether each problem is the large model's."""

    def solve(
        self,
        model: RoutedModel,
        problems: Sequence[Problem],
        seeds: Sequence[int],
        finished: Finished,
    ) -> None:
        """The chains of the models that were chosen."""
        began = time.perf_counter()
        large = self.large(model, problems)
        seconds = (time.perf_counter() - began) / len(problems)
        writer: ModelName
        for writer in ("small", "large"):
            mine = [n for n in range(len(problems)) if large[n] == (writer == "large")]
            if not mine:
                continue
            tell = self._telling(mine, writer, seconds, finished)
            alone(model, [problems[n] for n in mine], [seeds[n] for n in mine], writer, tell)

    def _telling(
        self, places: Sequence[int], writer: ModelName, seconds: float, finished: Finished
    ) -> Callable[[int, Result], None]:
        """Tells of a model's problems, which lie at these places among all."""

        def tell(own: int, result: Result) -> None:
            outcome = outcome_of(
                result,
                writer,
                {},
                decision=float(writer == "large"),
                more_passes={"small": self.passes},
                more_seconds=seconds,
            )
            finished(places[own], outcome)

        return tell
