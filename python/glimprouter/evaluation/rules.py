"""The policies of an evaluation by name: what they are built from, and how a share sets them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from glimprouter import policies
from glimprouter.chains import ArbitrageOracle, CandidateRule, SpecCoT
from glimprouter.evaluation import chain_systems
from glimprouter.evaluation.chain_systems import ChainSystem
from glimprouter.evaluation.settings import SETTINGS, check_settings
from glimprouter.policies import Policy
from glimprouter.policies.checks import check_probability

__all__ = ["LARGE_ALONE", "RULES", "SMALL_ALONE", "Decider", "Rule", "rule_of"]

Decider: TypeAlias = Policy | CandidateRule | ChainSystem

SMALL_ALONE = "small-alone"
LARGE_ALONE = "large-alone"


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy that an evaluation can run.

    Attributes:
        name: On the command line, and in records.
        policy: Its class, or that of a rule that chooses among drafts of a step, or of a system
            around the chain.
        set_by: What a wanted share of large steps sets: ``"threshold"``, chosen on development
            problems; ``"share"``, given to the policy as it is; None: it takes parameters only.
        signal: Recorded field of a step that a threshold is compared with.
        falling: Whether *small* values of the signal go to the large model.
        least: Least threshold that the policy takes.
        most: Largest.
        given: Argument of the policy that an evaluation makes: ``"reward"``, ``"router"`` or
            ``"chains"``.
        settings: Of an arm that it may have (:mod:`glimprouter.evaluation.settings`).
        along: Makes of a chain's values of the signal what the threshold is compared with, with
            the parameters; None: the values themselves.
        decision: What a system around the chain decides, in words: records have its share.
        trained: What of such a system is trained here, in words.
        priced: Whether passes and tokens of its records are those of the pair's two models.
    """

    name: str
    policy: Callable[..., Decider]
    set_by: Literal["threshold", "share"] | None = None
    signal: str | None = None
    falling: bool = False
    least: float = 0.0
    most: float = math.inf
    given: Literal["reward", "router", "chains"] | None = None
    settings: Sequence[str] = SETTINGS
    along: Callable[[Sequence[float], Mapping[str, float]], list[float]] | None = None
    decision: str = ""
    trained: str = ""
    priced: bool = True

    @property
    def reads_steps(self) -> bool:
        """Whether it compares what the small model has written, and not the glimpse."""
        return self.signal is not None and self.signal.startswith("step_")

    @property
    def one_at_a_time(self) -> bool:
        """Whether problems of a batch follow one another."""
        return bool(getattr(self.policy, "one_at_a_time", False))

    def score(self, value: float) -> float:
        """A value of the signal as a number >= 0 that grows with the wish for the large model."""
        return self.most - value if self.falling else value

    def threshold(self, score: float) -> float:
        """The policy's threshold for a threshold of scores."""
        if self.falling:
            return min(max(self.most - score, self.least), self.most)
        return min(max(score, self.least), self.most)

    def build(self, parameters: Mapping[str, float], given: Any = None) -> Decider:
        """The policy, from its own parameters; settings of the arm are checked.

        Args:
            parameters: By name.
            given: What :attr:`given` names; None where the policy is only tried.

        Raises:
            ValueError: A parameter that it does not have, lacks, or that is out of range.
        """
        known = dict(inspect.signature(self.policy).parameters)
        made = {}
        if self.given is not None:
            known = {name: known[name] for name in known if name not in (self.given, "features")}
            made = {self.given: _Untrained() if given is None else given}
        if unknown := sorted(set(parameters) - {*known, *self.settings}):
            raise ValueError(
                f"policy {self.name} has no parameter {unknown[0]!r}; it has"
                f" {', '.join([*known, *self.settings])}"
            )
        needed = [name for name, p in known.items() if p.default is p.empty]
        if missing := [name for name in needed if name not in parameters]:
            raise ValueError(f"policy {self.name} needs the parameter {missing[0]!r}")
        own: dict[str, Any] = {k: v for k, v in parameters.items() if k in known}
        for name, value in own.items():
            if isinstance(known[name].default, int) and float(value).is_integer():
                own[name] = int(value)
        try:
            check_settings(parameters)
            return self.policy(**made, **own)
        except (TypeError, ValueError) as error:
            raise ValueError(f"policy {self.name}: {error}") from error

    def rows(self, parameters: Mapping[str, float], batch: int) -> int:
        """Sequences that ``batch`` problems have in flight, parameters as for :meth:`build`."""
        made = self.build(parameters)
        if isinstance(made, CandidateRule):
            return batch * (made.candidates + 1)
        return made.rows(batch) if isinstance(made, ChainSystem) else batch


class _Untrained:
    """Stands for what only a run can make, while parameters are checked."""

    classes_ = (0, 1)

    def __call__(self, *_: object) -> float:
        raise RuntimeError("a policy that was only tried has been asked")

    predict_proba = __call__


def _all_small() -> Policy:
    return policies.EntropyThreshold(math.inf)


def _arbitrage(reward: Any, tau: float = 0.0) -> CandidateRule:
    return ArbitrageOracle(reward, tau)


def _entropy(threshold: float, at_least: int = 0) -> Policy:
    if at_least not in (0, 1):
        raise ValueError(f"at_least must be 0 or 1, got {at_least!r}")
    return policies.EntropyThreshold(threshold, ">=" if at_least else ">")


def _hysteresis(threshold: float, ratio: float = 0.5, warm_up: int = 0) -> Policy:
    """Up above the threshold, down at ``ratio`` times it."""
    check_probability("ratio", ratio)
    return policies.Hysteresis(ratio * threshold, threshold, warm_up=warm_up)


def _highest_that_holds(entropies: Sequence[float], parameters: Mapping[str, float]) -> list[float]:
    """For each step the threshold below which hysteresis gives it to the large model.

    A threshold h does so where an entropy of the chain exceeded h and none since was at most
    ``ratio h``: ``s_t = max(H_t, min(s_{t-1}, H_t / ratio))``. In the warm-up ``s_t = H_t``.
    """
    ratio, warm_up = parameters.get("ratio", 0.5), parameters.get("warm_up", 0)
    found: list[float] = []
    for step, entropy in enumerate(entropies):
        held = entropy / ratio if ratio else (math.inf if entropy > 0 else 0.0)
        follows = found and step >= warm_up
        found.append(max(entropy, min(found[-1], held) if follows else 0.0))
    return found


def _spec_reason(threshold: float = 7.0, expected: int = 0) -> Policy:
    if expected not in (0, 1):
        raise ValueError(f"expected must be 0 or 1, got {expected!r}")
    return policies.SpecReason(threshold, expected=bool(expected))


_BY_PROBLEM = "problems by the large model"
# Name, class, what it is given, whether it runs the pair's two models as they are, what it decides,
# and what of it is trained here.
_SYSTEMS: tuple[tuple[str, type[ChainSystem], Literal["chains"] | None, bool, str, str], ...] = (
    (
        "do-stop-me-now",
        chain_systems.DoStopMeNow,
        "chains",
        True,
        _BY_PROBLEM,
        "nothing: the references are development problems",
    ),
    (
        "self-route",
        chain_systems.SelfRoute,
        "chains",
        True,
        _BY_PROBLEM,
        "the logistic router, on development problems",
    ),
    (
        "laser",
        chain_systems.LaSeR,
        "chains",
        True,
        _BY_PROBLEM,
        "its bound only; the source trains the model",
    ),
    (
        "a2r",
        chain_systems.A2R,
        None,
        True,
        "explorers that agree",
        "nothing; the synthesizer has not seen such messages",
    ),
    ("fractured", chain_systems.Fractured, None, True, "votes for the answer", "nothing to train"),
    (
        "spirit",
        chain_systems.Spirit,
        None,
        True,
        "steps that stay",
        "nothing; the source also trains on pruned chains",
    ),
    (
        "ari",
        chain_systems.ARI,
        "chains",
        False,
        "tokens in full precision",
        "its threshold, on development chains",
    ),
    (
        "ftp",
        chain_systems.FTP,
        "chains",
        False,
        "blocks that were skipped",
        "the order of the blocks only; the source trains a router",
    ),
)
_RULES = (
    Rule(SMALL_ALONE, _all_small),
    Rule(LARGE_ALONE, _all_small),  # never asked: the route is forced, nothing is glimpsed
    Rule("random", policies.RandomShare, "share"),
    Rule("entropy", _entropy, "threshold", "entropy"),
    Rule(
        "max-probability", policies.MaxProbability, "threshold", "max_prob", falling=True, most=1.0
    ),
    Rule("margin", policies.Margin, "threshold", "margin", falling=True, most=1.0),
    Rule("varentropy", policies.Varentropy, "threshold", "varentropy"),
    Rule("step-entropy", policies.StepEntropy, "threshold", "step_entropy"),
    Rule("step-perplexity", policies.StepPerplexity, "threshold", "step_perplexity", least=1.0),
    Rule("wanted-share", policies.WantedShare, "share"),
    Rule("hysteresis", _hysteresis, "threshold", "entropy", along=_highest_that_holds),
    Rule("mixture", policies.MixtureThreshold),
    Rule("learned", policies.LearnedRouter, "threshold", "step_score", most=1.0, given="router"),
    Rule("reward", policies.Reward, given="reward"),
    Rule("spec-reason", _spec_reason, "threshold", "step_score", falling=True, most=9.0),
    Rule(
        "spec-cot",
        SpecCoT,
        "threshold",
        "step_score",
        falling=True,
        most=0.0,
        least=-1e9,  # a mean log-probability is not below it, but for what cannot be scored
        settings=("drafts",),
    ),
    Rule("arbitrage-oracle", _arbitrage, given="reward", settings=("drafts",)),
    *(
        Rule(name, system, given=given, settings=(), decision=decision, trained=trained, priced=own)
        for name, system, given, own, decision, trained in _SYSTEMS
    ),
)
RULES: dict[str, Rule] = {rule.name: rule for rule in _RULES}


def rule_of(name: str) -> Rule:
    """A rule by its name.

    Raises:
        ValueError: There is none.
    """
    if name not in RULES:
        raise ValueError(f"unknown policy {name!r}; there are {', '.join(RULES)}")
    return RULES[name]
