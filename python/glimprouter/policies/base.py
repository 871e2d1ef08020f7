"""What a policy sees, and what it may decide."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from glimprouter.config import ModelName
from glimprouter.policies.aside import Aside, AsideReading
from glimprouter.router import OutputField

Verdict: TypeAlias = Literal["keep", "rewrite"]


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


@dataclass(frozen=True, slots=True)
class WrittenStep:
    """A step that has been written, before anybody else sees it.

    Attributes:
        seed: Seed of the sequence.
        substream: Random key of the sequence.
        index: Of the step, from 0.
        position: Tokens generated before it.
        model: Who wrote it.
        rewritable: Whether the verdict is read: the small model wrote the step because the policy
            gave it to it.
        entropy: Of the glimpse, nats; None where nothing was glimpsed.
        token_ids: Its tokens, each of its writer's vocabulary; white space before the first word is
            the small model's, whoever writes the step.
        entropies: Nats, one a token: of the distribution at temperature 1 that it was drawn from,
            of the renormalised top k with ``RouterConfig.entropy_top_k``.
        logprobs: Log-probability of each token at temperature 1.
        text: What was written, delimiter included.
        end_reason: Lower-case name of :class:`glimprouter.EndReason`.
        question: The user's message; None for a chat or raw ids.
        previous: Texts of the steps before.
        aside: What the large model said of it, where the policy has an :class:`Aside` and the step
            is ``rewritable``; else None.
    """

    seed: int
    substream: int
    index: int
    position: int
    model: ModelName
    rewritable: bool
    entropy: float | None
    token_ids: Sequence[int]
    entropies: Sequence[float]
    logprobs: Sequence[float]
    text: str
    end_reason: str
    question: str | None = None
    previous: Sequence[str] = ()
    aside: AsideReading | None = None

    @property
    def mean_entropy(self) -> float:
        """``H_step``: mean of the tokens' entropies, nats."""
        return math.fsum(self.entropies) / len(self.entropies)

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of its tokens, nats."""
        return math.fsum(self.logprobs) / len(self.logprobs)

    @property
    def perplexity(self) -> float:
        """``PPL_step = exp(-1/N sum ln p)`` of its tokens."""
        return math.exp(-self.mean_logprob)


class Judgement(NamedTuple):
    """A verdict, and the score that it came from, which the trace holds (``TraceStep.score``).

    Attributes:
        verdict: ``"keep"`` or ``"rewrite"``.
        score: Finite; of the step as the small model wrote it.
    """

    verdict: Verdict
    score: float


class Policy(ABC):
    """A rule that names the writer of each step.

    A decision had better follow from the glimpse alone: a run may ask again for the same step,
    after a rewind or an exception, and sequences of a batch come in any order. What it raises ends
    the call of the run that asked; the next call asks again, and the others go on then.

    Attributes:
        signals: Statistics of the glimpse that the rule reads beside the entropy.
        aside: What the large model reads of each step that may be rewritten, before :meth:`after`
            is asked about it; None for nothing.
    """

    signals: OutputField = OutputField.NONE
    aside: Aside | None = None

    @property
    def name(self) -> str:
        """What traces call it."""
        return type(self).__name__

    @abstractmethod
    def before(self, glimpse: Glimpse) -> ModelName:
        """Who writes the step: ``"small"`` or ``"large"``."""

    def after(self, step: WrittenStep) -> Verdict | Judgement:
        """Whether a step that was written stays: ``"keep"``, or ``"rewrite"`` by the large model.

        Asked about every step of both models once it has ended, where a policy has this method;
        the verdict counts where the step is ``rewritable``. A step that is rewritten leaves both
        models' memory up to its first word, which the large model writes then; the tokens that
        are dropped are in ``TraceStep.rewritten``. An end of the thinking is dropped likewise. What
        this raises ends the call of the run, as of :meth:`before`; the next call asks again. A
        :class:`Judgement` is a verdict with its score.

        After ``Run.rewind`` into a step that was kept, its end is told, but not rewritable any
        more: its text has been given out.
        """
        return "keep"


def reads_steps(policy: Policy) -> bool:
    """Whether a policy has a method ``after`` of its own."""
    return type(policy).after is not Policy.after


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
    if policy.aside is not None and not isinstance(policy.aside, Aside):
        raise TypeError(
            f"the aside of {policy.name} must be a glimprouter.policies.Aside or None, got"
            f" {type(policy.aside).__name__}"
        )
    if policy.aside is not None and not reads_steps(policy):
        raise TypeError(f"{policy.name} has an aside, and no method after that would read it")
