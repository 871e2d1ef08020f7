"""Options of a router, validated where they are made."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

ModelName: TypeAlias = Literal["small", "large"]
RouteName: TypeAlias = Literal["auto", "small", "large", "manual"]

_COMPARISONS = (">", ">=")
_ROUTES = ("auto", "small", "large", "manual")
_MODELS = ("small", "large")
_MAX_INT = 2**31 - 1
MOST_DRAFTS = 16  # of a sequence that waits to be verified
# Of the published code.
DEFAULT_THINK_TOKENS = 8192
DEFAULT_ANSWER_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Options of every sequence; each can be overridden in :meth:`StepRouter.open`.

    Defaults are those of the published code unless another source is named.

    Attributes:
        threshold: tau in nats, >= 0 (``inf``: never the large model). A step whose glimpse has an
            entropy above it is written by the large model. Not portable between small models.
        comparison: ``">"`` as in the paper, or ``">="`` as in the published code.
        entropy_top_k: None for the full entropy (paper); k >= 1 for the entropy of the renormalised
            k largest probabilities (published code: 20). Thresholds are not interchangeable.
        temperature: Temperature of the sampling, 0 (greedy) or in [1e-4, 1e4]. The entropy is
            always that of temperature 1.
        top_p: Nucleus mass in (0, 1]; 1 is off.
        top_k: Number of tokens kept, >= 0; 0 is off.
        min_p: Smallest probability kept, as a fraction of the largest, in [0, 1]; 0 is off.
        max_step_tokens: Tokens of one step, >= 1. A step cut by it gets no delimiter.
        max_think_tokens: Tokens of all steps, >= 1. Then the thinking is closed by force. None:
            8192 (published code); with a :class:`~glimprouter.hf.RoutedModel` at most what the
            contexts of its models leave.
        max_answer_tokens: Tokens of the answer, >= 0; 0 ends the sequence with the thinking. None:
            2048 (published code); with a ``RoutedModel`` at most a quarter of the shorter context.
        first_steps_large: So many first steps go to the large model without a glimpse, >= 0.
        large_tokens: The large model writes so many first tokens of a step that it is given, >= 1,
            and the small model the rest; None: all of the step. Steps of ``first_steps_large`` and
            of ``route="large"`` are the large model's as a whole.
        answer_model: Who writes the answer: ``"large"`` (paper) or ``"small"``.
        repetition_guard: Close the thinking when the last L steps equal the L before, L <= 8, from
            the third step on (the published code notices L = 1 only).
        route: ``"auto"``; ``"small"`` / ``"large"``: every step by that model, nothing is glimpsed;
            ``"manual"``: signals come out and :meth:`StepRouter.decide` continues.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A value outside its range.
    """

    threshold: float = 1.0
    comparison: Literal[">", ">="] = ">"
    entropy_top_k: int | None = None
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    max_step_tokens: int = 512
    max_think_tokens: int | None = None
    max_answer_tokens: int | None = None
    first_steps_large: int = 0
    large_tokens: int | None = None
    answer_model: ModelName = "large"
    repetition_guard: bool = True
    route: RouteName = "auto"

    def __post_init__(self) -> None:
        """Validates every field."""
        _check_number("threshold", self.threshold, 0.0, math.inf)
        _check_choice("comparison", self.comparison, _COMPARISONS)
        if self.entropy_top_k is not None:
            check_integer("entropy_top_k", self.entropy_top_k, 1, "None for the full entropy")
        check_sampling(self.temperature, self.top_p, self.top_k, self.min_p)
        check_integer("max_step_tokens", self.max_step_tokens, 1)
        if self.max_think_tokens is not None:
            check_integer("max_think_tokens", self.max_think_tokens, 1)
        if self.max_answer_tokens is not None:
            check_integer("max_answer_tokens", self.max_answer_tokens, 0)
        check_integer("first_steps_large", self.first_steps_large, 0)
        if self.large_tokens is not None:
            check_integer("large_tokens", self.large_tokens, 1, "None for whole steps")
        _check_choice("answer_model", self.answer_model, _MODELS)
        _check_choice("route", self.route, _ROUTES)
        if not isinstance(self.repetition_guard, bool):
            raise TypeError(f"repetition_guard must be a bool, got {self.repetition_guard!r}")

    def replace(self, **changes: Any) -> RouterConfig:
        """A copy with some fields changed, validated again.

        Raises:
            TypeError: A name that is no option.
        """
        known = {field.name for field in dataclasses.fields(self)}
        if unknown := sorted(set(changes) - known):
            raise TypeError(
                f"unknown option {unknown[0]!r}; RouterConfig has {', '.join(sorted(known))}"
            )
        return dataclasses.replace(self, **changes)


def native_options(config: RouterConfig) -> dict[str, Any]:
    """The flat form that the native router takes (enumerations as integers)."""
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in ("threshold", "temperature", "top_p", "min_p"):
        options[name] = float(options[name])
    options["comparison"] = _COMPARISONS.index(config.comparison)
    options["route"] = _ROUTES.index(config.route)
    options["answer_model"] = _MODELS.index(config.answer_model)
    options["entropy_top_k"] = config.entropy_top_k or 0
    options["large_tokens"] = config.large_tokens or 0
    for name, default in (
        ("max_think_tokens", DEFAULT_THINK_TOKENS),
        ("max_answer_tokens", DEFAULT_ANSWER_TOKENS),
    ):
        options[name] = default if options[name] is None else options[name]
    return options


def check_sampling(temperature: Any, top_p: Any, top_k: Any, min_p: Any) -> None:
    """Checks the options of the sampling.

    Raises:
        TypeError: One of the wrong type.
        ValueError: One outside its range.
    """
    if isinstance(temperature, str | bytes) or temperature != 0:
        _check_number("temperature", temperature, 1e-4, 1e4, "or 0 for greedy")
    _check_number("top_p", top_p, 0.0, 1.0, "1 is off", open_below=True)
    check_integer("top_k", top_k, 0, "0 is off")
    _check_number("min_p", min_p, 0.0, 1.0, "0 is off")


def check_random_key(name: str, value: Any) -> None:
    """Checks a part of the key of the random numbers.

    Raises:
        TypeError: No integer.
        ValueError: Outside [0, 2^64).
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not 0 <= value < 2**64:
        raise ValueError(f"{name} must lie in [0, 2^64), got {value}")


def _check_number(
    name: str,
    value: Any,
    low: float,
    high: float,
    remark: str = "",
    *,
    open_below: bool = False,
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if isinstance(value, int) and value.bit_length() > 1000:
        raise ValueError(f"{name} is too large for a number, it has {value.bit_length()} bits")
    if not low <= value <= high or (open_below and value == low):
        bracket = "(" if open_below else "["
        hint = f" ({remark})" if remark else ""
        raise ValueError(f"{name} must lie in {bracket}{low:g}, {high:g}]{hint}, got {value!r}")


def check_integer(
    name: str, value: Any, low: int, remark: str = "", *, high: int = _MAX_INT
) -> None:
    """Checks a count.

    Raises:
        TypeError: No integer.
        ValueError: Outside [low, high].
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        hint = f" ({remark})" if remark else ""
        limit = f"2^{high.bit_length()} - 1"
        raise ValueError(f"{name} must lie in [{low}, {limit}]{hint}, got {value}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
