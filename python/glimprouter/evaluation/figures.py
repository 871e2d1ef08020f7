"""Pictures of a report, as SVG. Needs matplotlib; no display."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Canvas

from glimprouter.evaluation.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from glimprouter.evaluation.arms import ArmResults

__all__ = ["agreement", "calibration", "forest", "frontier", "histogram", "sensitivity"]

# Distinguishable with colour blindness (Okabe and Ito); markers differ, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def frontier(arms: Sequence[ArmResults]) -> str:
    """Accuracy against share of large tokens, passes of the large model, and seconds."""
    canvas = Canvas(figsize=(12, 4.2), layout="constrained")
    axes = canvas.subplots(1, 3, sharey=True)
    xs: dict[str, Callable[[ArmResults], float]] = {
        "share of large tokens, %": lambda arm: 100 * arm.token_share,
        "large passes a problem": lambda arm: arm.mean(lambda r: r.large_passes).estimate,
        "seconds a problem": lambda arm: arm.mean(lambda r: r.seconds).estimate,
    }
    for place, (kind, group) in enumerate(_by_kind(arms).items()):
        for ax, (_, value) in zip(axes, xs.items(), strict=True):
            points = sorted((value(arm), *_accuracy(arm)) for arm in group)
            x, y, below, above = map(list, zip(*points, strict=True))
            ax.errorbar(x, y, yerr=[below, above], label=kind, **_style(place))
    for ax, name in zip(axes, xs, strict=True):
        ax.set_xlabel(name)
    axes[0].set_ylabel("right answers, %")
    axes[0].legend(fontsize=8)
    return _svg(canvas)


def _accuracy(arm: ArmResults) -> tuple[float, float, float]:
    """Per cent, with the distances to the worst and the best seed."""
    middle, seeds = arm.accuracy.estimate, arm.seed_accuracies
    return 100 * middle, 100 * (middle - min(seeds)), 100 * (max(seeds) - middle)


def _by_kind(arms: Sequence[ArmResults]) -> dict[str, list[ArmResults]]:
    found: dict[str, list[ArmResults]] = {}
    for arm in arms:
        found.setdefault(arm.kind, []).append(arm)
    return found


def forest(scores: Mapping[str, Mapping[str, Interval]]) -> str:
    """Areas under the ROC curve with their intervals, a panel a label."""
    canvas = Canvas(figsize=(5 * len(scores), 3.2), layout="constrained")
    axes = np.atleast_1d(canvas.subplots(1, len(scores), sharex=True))
    for ax, (title, rows) in zip(axes, scores.items(), strict=True):
        for place, interval in enumerate(reversed(list(rows.values()))):
            ends = (interval.estimate - interval.low, interval.high - interval.estimate)
            error = [[0.0 if math.isnan(end) else end] for end in ends]
            ax.errorbar(interval.estimate, place, xerr=error, fmt="o", color=COLOURS[0], capsize=3)
        ax.axvline(0.5, color="#999999", lw=1, ls=":")
        ax.set_yticks(range(len(rows)), list(reversed(list(rows))))
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("AUROC")
    return _svg(canvas)


def histogram(groups: Mapping[str, Sequence[float]]) -> str:
    """Entropies of first tokens, stacked by what became of the step."""
    canvas = Canvas(figsize=(7, 3.4), layout="constrained")
    ax: Axes = canvas.subplots()
    values = [list(group) for group in groups.values()]
    ax.hist(values, bins=40, stacked=True, label=list(groups), color=COLOURS[: len(values)])
    ax.set_xlabel("H_init, nats")
    ax.set_ylabel("steps")
    ax.legend(fontsize=8)
    return _svg(canvas)


def agreement(points: Sequence[tuple[int, Interval]]) -> str:
    """Share of tokens on which both models agree, by the position in the step."""
    canvas = Canvas(figsize=(7, 3.2), layout="constrained")
    ax: Axes = canvas.subplots()
    x = [position for position, _ in points]
    y = np.array([[i.estimate, i.low, i.high] for _, i in points]).T * 100
    error = np.nan_to_num(np.array([y[0] - y[1], y[2] - y[0]]))
    ax.errorbar(x, y[0], yerr=error.clip(0), fmt="o-", color=COLOURS[0], capsize=2, ms=4, lw=1)
    ax.set_xlabel("position of the token in its step")
    ax.set_ylabel("models agree, %")
    return _svg(canvas)


def calibration(arms: Sequence[ArmResults]) -> str:
    """Wanted against obtained share of large steps."""
    canvas = Canvas(figsize=(4.6, 4.2), layout="constrained")
    ax: Axes = canvas.subplots()
    ax.plot([0, 100], [0, 100], color="#999999", lw=1, ls=":")
    for place, (kind, group) in enumerate(_by_kind(arms).items()):
        rows = [(arm.arm.wanted or 0.0, share) for arm in group if (share := arm.step_share)]
        x = [100 * wanted for wanted, _ in rows]
        y = [100 * share.share for _, share in rows]
        error = [
            [100 * (share.share - share.low) for _, share in rows],
            [100 * (share.high - share.share) for _, share in rows],
        ]
        ax.errorbar(x, y, yerr=error, label=kind, **_style(place))
    ax.set_xlabel("wanted share of glimpsed steps, %")
    ax.set_ylabel("obtained on report problems, %")
    ax.legend(fontsize=8)
    return _svg(canvas)


def sensitivity(arms: Sequence[ArmResults]) -> str:
    """Accuracy and share of large steps against the threshold, a panel a rule."""
    groups = _by_kind(arms)
    canvas = Canvas(figsize=(3.4 * len(groups), 3.4), layout="constrained")
    axes = np.atleast_1d(canvas.subplots(1, len(groups), sharey=True))
    for ax, (rule, group) in zip(axes, groups.items(), strict=True):
        ordered = sorted(group, key=lambda arm: arm.arm.parameters["threshold"])
        x = [arm.arm.parameters["threshold"] for arm in ordered]
        right = [100 * arm.accuracy.estimate for arm in ordered]
        large = [100 * share.share if (share := arm.step_share) else math.nan for arm in ordered]
        ax.plot(x, right, "o-", color=COLOURS[0], label="right answers")
        ax.plot(x, large, "s--", color=COLOURS[1], label="large steps")
        ax.set_title(rule, fontsize=10)
        ax.set_xlabel("threshold")
    axes[0].set_ylabel("%")
    axes[0].legend(fontsize=8)
    return _svg(canvas)


def _style(place: int) -> dict[str, Any]:
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    return {"color": colour, "marker": marker, "capsize": 2, "linewidth": 1, "markersize": 5}


def _svg(canvas: Canvas) -> str:
    """The picture, the same for the same data."""
    with mpl.rc_context({"svg.hashsalt": "glimprouter"}):
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
