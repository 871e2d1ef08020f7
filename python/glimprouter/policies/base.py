"""What a policy sees, and what it may decide."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from glimprouter.config import ModelName
from glimprouter.router import OutputField


class Glimpse(NamedTuple):
    """The first token of a step, before anybody writes it, as the small model sees it.

    Attributes:
        seed: Seed of the sequence.
        substream: Random key of the sequence.
        step: Index of the step, from 0.
        position: Tokens generated before it.
        previous: Who wrote the step before; None for the first one.
        entropy: Nats, at temperature 1: of the whole distribution, or of the renormalised top k
            with ``RouterConfig.entropy_top_k``.
        max_prob: Largest probability at temperature 1. This and the following are NaN unless the
            policy's :attr:`Policy.signals` ask for them.
        margin: Difference of the two largest probabilities.
        varentropy: Variance of ``-ln p``, square nats.
    """

    seed: int
    substream: int
    step: int
    position: int
    previous: ModelName | None
    entropy: float
    max_prob: float = math.nan
    margin: float = math.nan
    varentropy: float = math.nan


class Policy(ABC):
    """A rule that names the writer of each step.

    A decision had better follow from the glimpse alone: a run may ask again for the same step,
    after a rewind or an exception, and sequences of a batch come in any order. What it raises ends
    the call of the run that asked; the next call asks again, and the others go on then.

    Attributes:
        signals: Statistics of the glimpse that the rule reads beside the entropy.
    """

    signals: OutputField = OutputField.NONE

    @property
    def name(self) -> str:
        """What traces call it."""
        return type(self).__name__

    @abstractmethod
    def before(self, glimpse: Glimpse) -> ModelName:
        """Who writes the step: ``"small"`` or ``"large"``."""


def check_policy(policy: Any) -> None:
    """Refuses what is no policy.

    Raises:
        TypeError: Another type, a name that is no text, or signals that are no mask.
    """
    if policy is None:
        return
    if not isinstance(policy, Policy):
        raise TypeError(
            "policy must be an object of a class derived from glimprouter.policies.Policy, or"
            f" None, got {type(policy).__name__}"
        )
    if not isinstance(policy.name, str):
        raise TypeError(f"the name of {type(policy).__name__} must be a str, got {policy.name!r}")
    if not isinstance(policy.signals, OutputField):
        raise TypeError(
            f"the signals of {policy.name} must be a mask of glimprouter.OutputField members, got"
            f" {policy.signals!r}"
        )
