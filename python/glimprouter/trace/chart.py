"""The entropies of a trace as an inline SVG: x the steps, y H in nats, tau dashed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from glimprouter.trace.record import TraceStep

__all__ = ["draws_threshold", "entropy_chart", "format_nats", "mark_path"]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 960.0, 56.0, 948.0, 16.0, 232.0
LANE_HEIGHT = 22.0  # below the plot, for steps that nobody glimpsed
AXIS_HEIGHT = 44.0
MIN_RADIUS, MAX_RADIUS = 1.8, 5.0
MAX_X_LABELS, MAX_Y_LABELS = 16, 5
# A file may say anything; beyond this the scale is of no use, and its arithmetic could overflow.
MAX_NATS = 1e6
# tau above both of these, the latter a factor of the highest mark, would flatten the marks; it is
# not drawn.
TAU_ALWAYS_SHOWN, TAU_HEADROOM = 3.0, 3.0


def format_nats(value: float | None) -> str:
    """H or tau: three decimals, or a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "\N{INFINITY}"
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.3g}"


def mark_path(model: str, x: float, y: float, radius: float) -> str:
    """Path of a mark: a disc for the small model, a diamond for the large one.

    Args:
        model: ``"small"`` or ``"large"``.
        x: Place of the centre, in pixels.
        y: Place of the centre, in pixels.
        radius: In pixels; the diamond reaches a quarter further, for an equal area.
    """
    if model == "small":
        r = f"{radius:.2f}"
        return f"M{x - radius:.2f} {y:.2f}a{r} {r} 0 1 0 {2 * radius:.2f} 0a{r} {r} 0 1 0 " + (
            f"{-2 * radius:.2f} 0z"
        )
    reach = 1.25 * radius
    return f"M{x:.2f} {y - reach:.2f}l{reach:.2f} {reach:.2f}l{-reach:.2f} {reach:.2f}" + (
        f"l{-reach:.2f} {-reach:.2f}z"
    )


def _nice_step(span: float, most: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that cuts the span in at most so many parts."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(f * power for f in (1.0, 2.0, 5.0, 10.0) if span / (f * power) <= most + 1e-9)


class _Scale:
    """From step and nats to pixels."""

    def __init__(self, steps: Sequence[TraceStep]) -> None:
        self.spacing = (RIGHT - LEFT) / max(len(steps), 1)
        self.radius = min(max(0.42 * self.spacing, MIN_RADIUS), MAX_RADIUS)
        highest = max((_plotted(s.entropy) for s in steps if s.entropy is not None), default=0.0)
        limit = max(TAU_ALWAYS_SHOWN, TAU_HEADROOM * highest)
        self.thresholds = [s.threshold if 0.0 <= s.threshold <= limit else None for s in steps]
        top = max([highest, *(tau for tau in self.thresholds if tau is not None)])
        self.tick = _nice_step(1.04 * max(top, 0.05), MAX_Y_LABELS)
        self.top = self.tick * math.ceil(1.04 * max(top, 0.05) / self.tick)

    def x(self, position: int) -> float:
        return LEFT + (position + 0.5) * self.spacing

    def y(self, nats: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * _plotted(nats) / self.top


def _plotted(nats: float) -> float:
    return min(max(nats, 0.0), MAX_NATS)


def draws_threshold(steps: Sequence[TraceStep]) -> bool:
    """Whether the chart of these steps has a line for tau: not where it is far above all marks."""
    return any(tau is not None for tau in _Scale(steps).thresholds)


def _grid(scale: _Scale) -> list[str]:
    parts = []
    for number in range(round(scale.top / scale.tick) + 1):
        y = scale.y(number * scale.tick)
        parts.append(f'<path class="grid" d="M{LEFT:.0f} {y:.2f}H{RIGHT:.0f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 8:.0f}" y="{y + 4:.2f}" text-anchor="end">'
            f"{number * scale.tick:g}</text>"
        )
    parts.append(
        f'<text class="axis" transform="translate(14 {(TOP + BOTTOM) / 2:.0f}) rotate(-90)" '
        'text-anchor="middle">H (nats)</text>'
    )
    return parts


def _step_axis(scale: _Scale, count: int, bottom: float) -> list[str]:
    stride = max(round(_nice_step(max(count, 1), MAX_X_LABELS)), 1)
    parts = [
        f'<text class="tick" x="{scale.x(position):.2f}" y="{bottom + 18:.0f}" '
        f'text-anchor="middle">{position}</text>'
        for position in range(0, count, stride)
    ]
    middle = (LEFT + RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{bottom + 37:.0f}" text-anchor="middle">step'
        "</text>"
    )
    return parts


def _threshold_lines(scale: _Scale) -> list[str]:
    """A dashed line over each run of steps with the same tau; the label where it is the only."""
    runs = [
        (tau, [position for position, _ in group])
        for tau, group in groupby(enumerate(scale.thresholds), key=lambda pair: pair[1])
    ]
    parts = []
    for tau, positions in runs:
        if tau is None:
            continue
        start, end = positions[0] * scale.spacing, (positions[-1] + 1) * scale.spacing
        y = scale.y(tau)
        parts.append(f'<path class="tau" d="M{LEFT + start:.2f} {y:.2f}H{LEFT + end:.2f}"/>')
        if len(runs) == 1:
            parts.append(
                f'<text class="tau-label" x="{RIGHT - 4:.0f}" y="{y - 6:.2f}" text-anchor="end">'
                f"tau = {tau:g}</text>"
            )
    return parts


def _stems(scale: _Scale, steps: Sequence[TraceStep]) -> str:
    lines = "".join(
        f"M{scale.x(position):.2f} {BOTTOM:.0f}V{scale.y(step.entropy):.2f}"
        for position, step in enumerate(steps)
        if step.entropy is not None
    )
    return f'<path class="stems" d="{lines}"/>' if lines else ""


def _mark(scale: _Scale, position: int, step: TraceStep) -> str:
    glimpsed = step.entropy is not None
    y = scale.y(step.entropy) if step.entropy is not None else BOTTOM + LANE_HEIGHT / 2
    entropy = f"H {format_nats(step.entropy)} nats" if glimpsed else "no glimpse"
    tokens = f"{step.num_tokens} token{'' if step.num_tokens == 1 else 's'}"
    path = mark_path(step.model, scale.x(position), y, scale.radius)
    return (
        f'<a href="#step-{position}" tabindex="-1"><path class="mark {step.model}" d="{path}">'
        f"<title>step {position}, {step.model}: {entropy}, {tokens}</title></path></a>"
    )


def entropy_chart(steps: Sequence[TraceStep]) -> str:
    """Draws the timeline.

    Args:
        steps: Steps of the trace; each ``model`` is ``"small"`` or ``"large"``.

    Returns:
        An ``<svg>`` element without text of the trace in it; classes are styled by the page.
    """
    scale = _Scale(steps)
    lane = any(step.entropy is None for step in steps)
    bottom = BOTTOM + (LANE_HEIGHT if lane else 0.0)
    parts = [*_grid(scale), *_step_axis(scale, len(steps), bottom)]
    if lane:
        parts.append(
            f'<text class="tick" x="{LEFT - 8:.0f}" y="{BOTTOM + LANE_HEIGHT / 2 + 4:.0f}" '
            'text-anchor="end">none</text>'
        )
    parts.append(_stems(scale, steps))
    parts += [_mark(scale, position, step) for position, step in enumerate(steps)]
    parts += _threshold_lines(scale)
    body = "\n".join(part for part in parts if part)
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {bottom + AXIS_HEIGHT:.0f}" role="img" '
        f'aria-label="Entropy of the glimpse over {len(steps)} steps">\n{body}\n</svg>'
    )
