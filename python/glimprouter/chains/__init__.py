"""Rules around whole chains of thought: what to stop, to sample, to read again, or to shorten.

A policy (:mod:`glimprouter.policies`) decides about a step. What is here decides about a chain, or
in which precision and through which blocks of one model each of its tokens goes: each file is named
after what it does, and its docstring has the system that it comes from, its formula, and which part
would need training. A scorer that is to be trained is an argument.
"""

from __future__ import annotations

from glimprouter.chains.adaptive_resolution import (
    AdaptiveResolution,
    ResolutionCounts,
    Resolved,
)
from glimprouter.chains.arbitrage import ArbitrageOracle
from glimprouter.chains.block_scorer import BlockScorer, TokenFeatures
from glimprouter.chains.block_skipping import BlockSkipping, SkipCounts
from glimprouter.chains.candidate_rule import CandidateResult, CandidateRule, Choice
from glimprouter.chains.candidates import write_with_candidates
from glimprouter.chains.explorers import (
    Exploration,
    explore_and_synthesize,
    explore_and_synthesize_each,
)
from glimprouter.chains.first_token import FirstTokenNeighbours, first_token_logprobs
from glimprouter.chains.fractured import Fracture, FracturedSampling, fractured_sampling
from glimprouter.chains.length_reward import length_harmonizing_rewards
from glimprouter.chains.pre_inference import PreInferenceRouter, pre_inference_features
from glimprouter.chains.reduced_copy import reduced_copy
from glimprouter.chains.resolution_margins import ResolutionMargins, resolution_margins
from glimprouter.chains.self_reward import last_token_self_reward, self_reward
from glimprouter.chains.skip_router import BlockRecord, SkipRouter, record_blocks
from glimprouter.chains.skip_rules import EntropySkips, LeastAttendedSkip, OldestSkip
from glimprouter.chains.spec_cot import SpecCoT
from glimprouter.chains.step_importance import StepImportance, pruned, step_importance
from glimprouter.chains.vote import Vote, majority

__all__ = [
    "AdaptiveResolution",
    "ArbitrageOracle",
    "BlockRecord",
    "BlockScorer",
    "BlockSkipping",
    "CandidateResult",
    "CandidateRule",
    "Choice",
    "EntropySkips",
    "Exploration",
    "FirstTokenNeighbours",
    "Fracture",
    "FracturedSampling",
    "LeastAttendedSkip",
    "OldestSkip",
    "PreInferenceRouter",
    "ResolutionCounts",
    "ResolutionMargins",
    "Resolved",
    "SkipCounts",
    "SkipRouter",
    "SpecCoT",
    "StepImportance",
    "TokenFeatures",
    "Vote",
    "explore_and_synthesize",
    "explore_and_synthesize_each",
    "first_token_logprobs",
    "fractured_sampling",
    "last_token_self_reward",
    "length_harmonizing_rewards",
    "majority",
    "pre_inference_features",
    "pruned",
    "record_blocks",
    "reduced_copy",
    "resolution_margins",
    "self_reward",
    "step_importance",
    "write_with_candidates",
]
