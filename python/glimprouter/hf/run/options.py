"""Options of a pair that are refused before a model is loaded, or tried."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from glimprouter.config import RouterConfig, check_integer
from glimprouter.hf.engine.choice import ENGINES, check_execution
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.thinking import check_thinking
from glimprouter.hf.run.drafting import check_drafts
from glimprouter.policies.base import check_policy


def check_options(
    *,
    config: Any = None,
    engine: Any = "auto",
    execution: Any = "auto",
    on_invalid: Any = "raise",
    max_sequences: Any = 1,
    kv_memory_bytes: Any = None,
    state_snapshots: Any = 0,
    fused_layers: Any = "auto",
    drafts: Any = "auto",
    thinking: Any = "auto",
    policy: Any = None,
    **_others: object,
) -> None:
    """Refuses what no pair could have, whatever else there is.

    Raises:
        TypeError: A value of another type.
        ValueError: A value out of its range.
    """
    if engine not in ENGINES:
        names = ", ".join(f'"{name}"' for name in ENGINES)
        raise ValueError(f"engine must be one of {names}, got {engine!r}")
    check_execution(execution)
    if kv_memory_bytes is not None:
        check_kv_memory(kv_memory_bytes)
    check_integer("state_snapshots", state_snapshots, 0)
    if on_invalid not in ("raise", "end"):
        raise ValueError(f'on_invalid must be "raise" or "end", got {on_invalid!r}')
    if config is not None and not isinstance(config, RouterConfig):
        raise TypeError(f"config must be a RouterConfig, got {type(config).__name__}")
    if config is not None:
        _check_route(config)
    if not isinstance(max_sequences, int) or isinstance(max_sequences, bool):
        raise TypeError(f"max_sequences must be an integer, got {max_sequences!r}")
    if max_sequences < 1:
        raise ValueError(f"max_sequences must be >= 1, got {max_sequences}")
    if fused_layers != "auto" and not isinstance(fused_layers, bool):
        raise ValueError(f'fused_layers must be "auto", True or False, got {fused_layers!r}')
    check_drafts(drafts)
    check_thinking(thinking)
    check_policy(policy)


def check_kv_memory(memory: Any) -> None:
    """Refuses memory that is neither a number of bytes nor one for each model.

    Raises:
        TypeError: A value of another type.
        ValueError: A value out of range, or for another than both models.
    """
    if isinstance(memory, Mapping) and not (memory and set(memory) <= set(MODELS)):
        raise ValueError(
            'kv_memory_bytes for each model is {"small": ..., "large": ...}, got'
            f" {dict(memory)!r}"
        )
    named = memory.items() if isinstance(memory, Mapping) else [("", memory)]
    for name, count in named:
        what = f'kv_memory_bytes["{name}"]' if name else "kv_memory_bytes"
        check_integer(what, count, 1, high=2**63 - 1)


def options_of(pair: Any) -> frozenset[str]:
    """What a pair's constructor takes by name and ``from_pretrained`` hands on.

    Args:
        pair: The class.
    """
    parameters = inspect.signature(pair).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) - {"device"}


def run_config(config: RouterConfig, overrides: dict[str, Any], policy: Any) -> RouterConfig:
    """The options of a run's sequences.

    Args:
        config: Of the pair.
        overrides: Of this run.
        policy: Of the pair; None where thresholds decide.

    Raises:
        TypeError: An option that is none, or of another type.
        ValueError: One out of range, or a threshold beside a policy.
    """
    check_policy(policy)
    own = config.replace(**overrides)
    _check_route(own)
    ignored = sorted({"threshold", "comparison"} & overrides.keys())
    if policy is not None and own.route == "auto" and ignored:
        raise ValueError(
            f"{ignored[0]} would be ignored: the policy {policy.name} decides about steps; set"
            " the RoutedModel's policy to None"
        )
    return own


def _check_route(config: RouterConfig) -> None:
    if config.route == "manual":
        raise ValueError(
            'route="manual" needs your own loop around StepRouter; a RoutedModel takes a policy'
            " (glimprouter.policies)"
        )
