"""Rules around whole chains of thought: what to stop, to sample, to read again, or to shorten.

A policy (:mod:`glimprouter.policies`) decides about a step. What is here decides about a chain, or
about who computes each of its tokens, and how much of a model:
each file is named after what it does, and its docstring has the system that it comes from, its
formula, and which part would need training. A scorer that is to be trained is an argument.
"""

from __future__ import annotations

from glimprouter.chains.adaptive_resolution import (
    AdaptiveResolution,
    ResolutionCounts,
    Resolved,
)
from glimprouter.chains.explorers import Exploration, explore_and_synthesize
from glimprouter.chains.first_token import FirstTokenNeighbours, first_token_logprobs
from glimprouter.chains.fractured import Fracture, FracturedSampling, fractured_sampling
from glimprouter.chains.length_reward import length_harmonizing_rewards
from glimprouter.chains.pre_inference import PreInferenceRouter, pre_inference_features
from glimprouter.chains.reduced_copy import reduced_copy
from glimprouter.chains.resolution_margins import ResolutionMargins, resolution_margins
from glimprouter.chains.self_reward import last_token_self_reward, self_reward
from glimprouter.chains.step_importance import StepImportance, pruned, step_importance
from glimprouter.chains.vote import Vote, majority

__all__ = [
    "AdaptiveResolution",
    "Exploration",
    "FirstTokenNeighbours",
    "Fracture",
    "FracturedSampling",
    "PreInferenceRouter",
    "ResolutionCounts",
    "ResolutionMargins",
    "Resolved",
    "StepImportance",
    "Vote",
    "explore_and_synthesize",
    "first_token_logprobs",
    "fractured_sampling",
    "last_token_self_reward",
    "length_harmonizing_rewards",
    "majority",
    "pre_inference_features",
    "pruned",
    "reduced_copy",
    "resolution_margins",
    "self_reward",
    "step_importance",
]
