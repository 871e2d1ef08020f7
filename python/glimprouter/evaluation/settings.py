"""What an arm may set beside its policy: ``large_tokens``, ``entropy_top_k``, ``drafts``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glimprouter.config import MOST_DRAFTS, RouterConfig

__all__ = ["SETTINGS", "check_settings", "config_of", "drafts_of", "settings_of"]

SETTINGS = ("large_tokens", "entropy_top_k", "drafts")


def settings_of(parameters: Mapping[str, float]) -> dict[str, int]:
    """Those of an arm's parameters that are not the policy's own."""
    return {name: int(parameters[name]) for name in SETTINGS if name in parameters}


def config_of(parameters: Mapping[str, float]) -> dict[str, Any]:
    """Those that are fields of :class:`RouterConfig`."""
    return {name: n for name, n in settings_of(parameters).items() if name != "drafts"}


def drafts_of(parameters: Mapping[str, float]) -> int | None:
    """Drafts of the arm; None for those of the pair."""
    return settings_of(parameters).get("drafts")


def check_settings(parameters: Mapping[str, float]) -> None:
    """Refuses settings that no run could have.

    Raises:
        ValueError: One out of range, or no whole number.
    """
    for name in SETTINGS:
        value = parameters.get(name, 1)
        if not float(value).is_integer():
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    RouterConfig(**config_of(parameters))
    drafts = drafts_of(parameters)
    if drafts is not None and not 0 <= drafts <= MOST_DRAFTS:
        raise ValueError(f"drafts must lie in [0, {MOST_DRAFTS}], got {drafts}")
