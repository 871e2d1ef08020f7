"""What a forward pass costs, by its tokens: assumed, or measured while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping

_FORGETTING = 0.98  # of all earlier passes, with each new one
_MOST_TOKENS = 1024  # longer passes read prompts: another regime
_LEAST_WEIGHT = 3.0  # passes, before their slope is believed


class PassCosts:
    """A straight line for each model, ``seconds = fixed + tokens * slope``.

    Without a clock the costs are assumed, in any unit: turns then depend on tokens alone, and so do
    the sizes of passes. With one, what :meth:`note` is told replaces the assumption.
    """

    def __init__(self, assumed: Mapping[str, float], *, measures: bool) -> None:
        """Nothing is measured yet.

        Args:
            assumed: Cost of a pass of each model until it is measured; the ratio is what counts.
            measures: Whether there is a clock.
        """
        self._assumed = dict(assumed)
        self._measures = measures
        self._sums = {name: _Line() for name in assumed}

    def note(self, model: str, tokens: int, seconds: float) -> None:
        """A pass has been computed."""
        if self._measures and tokens <= _MOST_TOKENS:
            self._sums[model].add(tokens, seconds)

    def of(self, model: str, tokens: int) -> float:
        """What a pass over so many tokens would cost."""
        fixed, slope = self.line(model)
        return fixed + slope * tokens

    def line(self, model: str) -> tuple[float, float]:
        """Fixed cost, and that of each token."""
        if self._sums[model].weight:
            return self._sums[model].fit()
        for name, line in self._sums.items():  # one of them is measured: its unit counts
            if line.weight:
                fixed, slope = line.fit()
                ratio = self._assumed[model] / self._assumed[name]
                return fixed * ratio, slope * ratio
        return self._assumed[model], 0.0


class _Line:
    """Least squares over passes, the older the lighter."""

    def __init__(self) -> None:
        self.weight = 0.0
        self._x = self._y = self._xx = self._xy = 0.0

    def add(self, x: float, y: float) -> None:
        self.weight, self._x, self._y, self._xx, self._xy = (
            _FORGETTING * old + new
            for old, new in zip(
                (self.weight, self._x, self._y, self._xx, self._xy),
                (1.0, x, y, x * x, x * y),
                strict=True,
            )
        )

    def fit(self) -> tuple[float, float]:
        """Intercept and slope, neither below 0."""
        mean_x, mean_y = self._x / self.weight, self._y / self.weight
        variance = self._xx / self.weight - mean_x * mean_x
        slope = 0.0
        if self.weight >= _LEAST_WEIGHT and variance > 0:
            slope = (self._xy / self.weight - mean_x * mean_y) / variance
            slope = min(max(slope, 0.0), mean_y / mean_x)
        return mean_y - slope * mean_x, slope
