"""An evaluation of a pair on engines: what it may ask for, and what is known of the pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glimprouter.evaluation.plan import Arm, Plan
from glimprouter.evaluation.rules import LARGE_ALONE, SMALL_ALONE

if TYPE_CHECKING:
    from glimprouter.vllm import RoutedEngines

__all__ = ["ENGINE_POLICIES", "check_plan", "engine_versions", "engines_identity", "engines_plan"]

ENGINE_POLICIES = ("random", "entropy")
"""What gates decide: they say the entropy of a first token and nothing else of it."""


def engines_plan(**sizes: Any) -> Plan:
    """A plan of all that engines can do.

    Args:
        **sizes: Fields of :class:`Plan`; ``policies`` are those of engines, and nothing is probed,
            unless they are given.
    """
    return Plan(**{"policies": ENGINE_POLICIES, "probe_problems": 0, **sizes})


def check_plan(plan: Plan) -> None:
    """Refuses what engines cannot do.

    Raises:
        ValueError: Names what the plan asks for.
    """
    allowed = (SMALL_ALONE, LARGE_ALONE, *ENGINE_POLICIES)
    for spec in plan.specs:
        label = Arm(spec.rule, spec.parameters).label
        if spec.rule not in allowed:
            raise ValueError(
                f"policy {label} is not for engines: their gates say the entropy of a step's first"
                f" token and nothing else; policies of engines are {', '.join(ENGINE_POLICIES)}"
            )
        if "drafts" in spec.parameters:
            raise ValueError(f"policy {label}: the models of engines do not draft for one another")
    if plan.probe_problems:
        raise ValueError(
            f"probe_problems is {plan.probe_problems}, and must be 0 on engines: a probe forks"
            " sequences, which engines cannot"
        )


def engines_identity(model: RoutedEngines) -> dict[str, Any]:
    """What is known of a pair on engines, as the records of one folder have it in common."""
    return {
        "weights": None,
        "dtypes": dict.fromkeys(model.facts, "of the engine"),
        "one_vocabulary": model.boundary is model.large_boundary,
        "engine": "vLLM",
        "execution": "by gates",
        "device": "elsewhere",
        "drafts": 0,
    }


def engine_versions(model: RoutedEngines) -> dict[str, str]:
    """Model and version of each engine, for the record of a session."""
    return {name: f"{own.model}, vLLM {own.version}" for name, own in model.facts.items()}
