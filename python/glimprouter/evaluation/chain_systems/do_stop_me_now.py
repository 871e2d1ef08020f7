"""Do Stop Me Now (arXiv 2510.22679) as an arm: the first token's neighbours choose the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from glimprouter.chains import FirstTokenNeighbours, first_token_logprobs
from glimprouter.config import check_integer
from glimprouter.evaluation.chain_systems.base import DevelopmentChains, prompt_ids
from glimprouter.evaluation.chain_systems.choosing import ChoosesModel
from glimprouter.tasks import Problem, Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from glimprouter.hf import RoutedModel

__all__ = ["DoStopMeNow"]


class DoStopMeNow(ChoosesModel):
    """The k development problems whose first tokens are most alike vote: small or large.

    The published labels are kinds of responses (refusal, thanks, ...), of which a task of problems
    has none: here a reference is "large" where the small model alone got it wrong.
    """

    def __init__(self, chains: DevelopmentChains, neighbours: int = 3) -> None:
        """The rule.

        Args:
            chains: The reference set.
            neighbours: k, >= 1.

        Raises:
            TypeError: No integer.
            ValueError: Out of range.
        """
        check_integer("neighbours", neighbours, 1)
        self._chains, self._neighbours = chains, neighbours

    @cached_property
    def _vote(self) -> FirstTokenNeighbours:
        known = self._chains.small
        if len(known) < self._neighbours:
            raise ValueError(
                f"{self._neighbours} neighbours need as many development problems, got {len(known)}"
            )
        points = _logprobs(self._chains.model, [each.problem for each in known])
        labels = ["small" if each.right else "large" for each in known]
        return FirstTokenNeighbours(points, labels, neighbours=self._neighbours)

    def prepare(self, task: Task) -> None:
        """Reads the reference set."""
        super().prepare(task)
        _ = self._vote

    def large(self, model: RoutedModel, problems: Sequence[Problem]) -> list[bool]:
        """By the vote."""
        return [label == "large" for label in self._vote.labels_of(_logprobs(model, problems))]


def _logprobs(model: RoutedModel, problems: Sequence[Problem]) -> npt.NDArray[np.float32]:
    from glimprouter.hf.pair.locks import exclusive

    ids = prompt_ids(model, (problem.prompt for problem in problems), "small")
    with exclusive(model.small):
        return first_token_logprobs(model.small, ids)
