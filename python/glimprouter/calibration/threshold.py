"""A threshold from a wanted share of large steps, measured where it is used: in routed runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from glimprouter.calibration.fingerprint import pair_fingerprint
from glimprouter.calibration.pairs import AnyPair, ended, on_engines
from glimprouter.calibration.record import Calibration, check_large_share
from glimprouter.calibration.shares import Entropies, clustered_share, find_fixed_point
from glimprouter.config import check_integer, check_random_key

if TYPE_CHECKING:
    from glimprouter.hf.pair.prompts import Prompt

__all__ = ["MIN_PROMPTS", "Progress", "calibrate", "distinct_prompts"]

MIN_PROMPTS = 4
"""Two to calibrate on and two to verify on: fewer have no spread between prompts."""

# Stage ("unrouted", "round 1", ..., "verification"), prompts done, prompts of the stage.
Progress: TypeAlias = Callable[[str, int, int], None]


def calibrate(
    model: AnyPair,
    prompts: Sequence[Prompt],
    large_share: float = 0.25,
    *,
    seed: int = 0,
    max_rounds: int = 5,
    tolerance: float = 0.01,
    progress: Progress | None = None,
) -> Calibration:
    """Chooses the threshold that sends about this share of glimpsed steps to the large model.

    Routing changes the contexts of later glimpses, so the share is settled in routed runs. The
    prompts are split at random in halves. On the first, a run that never routes gives entropies to
    start from; then runs at a threshold and the quantile of their own entropies take turns until
    both agree (:func:`glimprouter.calibration.shares.find_fixed_point`). On the second half, the
    threshold is verified in one routed run. The model's own config is in force (comparison,
    entropy_top_k, sampling, limits) but for its threshold, and the small model writes the answers,
    which are no steps: at most ``2 + max_rounds`` runs over half of the prompts each.

    The interval is that of the measured share at this very threshold, over prompts of this kind.
    The threshold itself varies with the calibration prompts, so that a wanted share just outside
    the interval is nothing unusual; more prompts help. Forced steps (``first_steps_large``) do not
    count, and neither do glimpses that ended the thinking at once, since a trace has no step there.

    Args:
        model: The pair, with ``route="auto"`` and without a policy; also one on engines.
        prompts: As ``RoutedModel.generate`` takes them, at least 4 different ones (repetitions are
            dropped); some dozens or more for an interval of a few points.
        large_share: Wanted share in (0, 1).
        seed: Seed of the split, the sampling of the runs and the interval, in [0, 2^64); every
            calibration run draws the same random numbers, the verification run others.
        max_rounds: Routed calibration runs at most, >= 1.
        tolerance: Share of calibration steps, in [0, 1], that may lie between the threshold and
            the exact quantile.
        progress: Called with the stage (``"unrouted"``, ``"round 1"``, ..., ``"verification"``),
            the prompts done (0 at its start) and the prompts of the stage.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An argument out of range, too few prompts, a model that never glimpses, or what
            ``RoutedModel.generate`` refuses.
        RuntimeError: A run failed, or an engine stayed away.

    Warns:
        RuntimeWarning: On the calibration prompts the share is further from the wanted one than the
            tolerance and one step: the entropies have too few values, or no fixed point was found.
    """
    _check_arguments(model, large_share, seed, max_rounds, tolerance)
    distinct = distinct_prompts(prompts)
    _check_prompts(model, distinct, seed)
    first, second = _split(distinct, seed)
    runs = _Runs(model, progress or (lambda stage, done, total: None))
    found = find_fixed_point(
        lambda number, tau: runs.entropies(f"round {number}", first, seed, tau),
        runs.entropies("unrouted", first, seed, math.inf),
        large_share,
        model.config.comparison,
        max_rounds=max_rounds,
        tolerance=tolerance,
    )
    if abs(found.share - large_share) > max(tolerance, 1 / found.steps):
        message = (
            f"on the calibration prompts {100 * found.share:.1f} % of {found.steps} glimpsed steps"
            f" go to the large model, {100 * large_share:.1f} % were wanted: their entropies have"
            " too few values, or routing moves them too much"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    glimpses = runs.glimpses("verification", second, (seed + 1) % 2**64, found.threshold)
    steps = [len(prompt) for prompt in glimpses]
    large = [sum(went_large for _, went_large in prompt) for prompt in glimpses]
    measured = clustered_share(large, steps, seed)
    return Calibration(
        threshold=found.threshold,
        large_share=float(large_share),
        measured_share=measured.share,
        low=measured.low,
        high=measured.high,
        calibration_prompts=len(first),
        verification_prompts=len(second),
        calibration_steps=found.steps,
        verification_steps=sum(steps),
        rounds=found.rounds,
        comparison=model.config.comparison,
        entropy_top_k=model.config.entropy_top_k,
        pair=pair_fingerprint(model),
    )


def _check_prompts(model: AnyPair, prompts: Sequence[Prompt], seed: int) -> None:
    """Each of them, before the long runs."""
    if on_engines(model):
        model.check_prompts(prompts)
    else:
        model.stream(prompts, seeds=seed)  # never started


def _check_arguments(
    model: AnyPair, large_share: float, seed: int, max_rounds: int, tolerance: float
) -> None:
    check_large_share(large_share)
    check_random_key("seed", seed)
    check_integer("max_rounds", max_rounds, 1)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise TypeError(f"tolerance must be a number, got {tolerance!r}")
    if not 0 <= tolerance <= 1:
        raise ValueError(f"tolerance must lie in [0, 1], got {tolerance!r}")
    if model.config.route != "auto":
        raise ValueError(
            f'the model\'s route is "{model.config.route}", so it never glimpses; calibrate needs'
            ' route="auto"'
        )
    if model.policy is not None:
        raise ValueError(
            f"the model has the policy {model.policy.name}, which decides about steps; calibrate"
            " needs one whose threshold does: set its policy to None"
        )


def distinct_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without repetitions: one that stood in both halves would verify nothing.

    Raises:
        TypeError: No list of prompts.
        ValueError: Fewer than 4 different ones.
    """
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a list of prompts, got {type(prompts).__name__}")
    distinct = list({repr(prompt): prompt for prompt in prompts}.values())
    if len(distinct) < MIN_PROMPTS:
        raise ValueError(
            f"calibration needs at least {MIN_PROMPTS} different prompts (half of them to verify"
            f" on), got {len(distinct)}; some dozens give a useful interval"
        )
    return distinct


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of the model, and what their traces say about the glimpsed steps."""

    model: AnyPair
    progress: Progress

    def glimpses(
        self, stage: str, prompts: Sequence[Prompt], seed: int, threshold: float
    ) -> list[list[tuple[float, bool]]]:
        """For each prompt, the entropy of each glimpsed step and whether it went large."""
        found: list[list[tuple[float, bool]]] = [[] for _ in prompts]
        done = 0
        self.progress(stage, 0, len(prompts))
        run = self.model.stream(prompts, seeds=seed, threshold=threshold, answer_model="small")
        with ended(run):
            for event in run:
                if event.kind == "error":
                    raise RuntimeError(f"calibration, {stage}: {event.message}")
                if event.result is not None:
                    found[event.sequence] = [
                        (step.entropy, step.model == "large")
                        for step in event.result.trace.steps
                        if step.entropy is not None
                    ]
                    done += 1
                    self.progress(stage, done, len(prompts))
        if not any(found):
            raise ValueError(
                f"no step was glimpsed in {len(prompts)} prompts ({stage}): all were forced"
                f" (first_steps_large is {self.model.config.first_steps_large}), or there were none"
            )
        return found

    def entropies(
        self, stage: str, prompts: Sequence[Prompt], seed: int, threshold: float
    ) -> Entropies:
        """The entropies of all glimpsed steps, ascending."""
        glimpses = self.glimpses(stage, prompts, seed, threshold)
        return np.sort(np.array([h for prompt in glimpses for h, _ in prompt], dtype=np.float32))


def _split(prompts: list[Prompt], seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Random halves; of an odd number the first has one more."""
    order = np.random.default_rng(seed).permutation(len(prompts)).tolist()
    middle = (len(prompts) + 1) // 2
    return [prompts[i] for i in order[:middle]], [prompts[i] for i in order[middle:]]
