"""Who writes a step: rules that a :class:`~glimprouter.hf.RoutedModel` asks before each step.

A :class:`Policy` sees the :class:`Glimpse` of a step, the small model's distribution of its first
token in a few numbers, and names the writer. It may also read each step once it is written, and
have the large model write it anew. Each rule here is a file with its formula and source; a rule of
your own is a class with the method ``before``, and ``after`` where it reads steps.
"""

from __future__ import annotations

from glimprouter.policies.aside import Aside, AsideReading
from glimprouter.policies.base import Glimpse, Judgement, Policy, Verdict, WrittenStep
from glimprouter.policies.entropy_threshold import EntropyThreshold
from glimprouter.policies.hysteresis import Hysteresis
from glimprouter.policies.learned_router import FEATURES, LearnedRouter, step_features
from glimprouter.policies.margin import Margin
from glimprouter.policies.max_probability import MaxProbability
from glimprouter.policies.mixture_threshold import MixtureThreshold
from glimprouter.policies.random_share import RandomShare
from glimprouter.policies.reward import Reward
from glimprouter.policies.spec_reason import SpecReason
from glimprouter.policies.step_entropy import StepEntropy
from glimprouter.policies.step_perplexity import StepPerplexity
from glimprouter.policies.step_score import StepScore
from glimprouter.policies.varentropy import Varentropy
from glimprouter.policies.wanted_share import WantedShare

__all__ = [
    "FEATURES",
    "Aside",
    "AsideReading",
    "EntropyThreshold",
    "Glimpse",
    "Hysteresis",
    "Judgement",
    "LearnedRouter",
    "Margin",
    "MaxProbability",
    "MixtureThreshold",
    "Policy",
    "RandomShare",
    "Reward",
    "SpecReason",
    "StepEntropy",
    "StepPerplexity",
    "StepScore",
    "Varentropy",
    "Verdict",
    "WantedShare",
    "WrittenStep",
    "step_features",
]
