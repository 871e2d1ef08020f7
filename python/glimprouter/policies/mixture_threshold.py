"""A threshold between the two humps of the entropies seen so far."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from glimprouter.config import ModelName, RouterConfig, check_integer
from glimprouter.policies.base import Glimpse, Policy


def crossing(weights: np.ndarray, means: np.ndarray, deviations: np.ndarray) -> float:
    """Where two weighted normal densities are alike, between their means.

    Args:
        weights: Of the two, float ``[2]``, > 0.
        means: Ascending.
        deviations: Standard deviations, > 0.

    Returns:
        The crossing; where one density is above the other all the way, the mean of that other.
    """
    precisions = 1.0 / deviations**2
    # ln of the second over the first density: a x^2 + b x + c
    a = (precisions[0] - precisions[1]) / 2
    b = means[1] * precisions[1] - means[0] * precisions[0]
    c = (means[0] ** 2 * precisions[0] - means[1] ** 2 * precisions[1]) / 2
    c += math.log(weights[1] / deviations[1]) - math.log(weights[0] / deviations[0])
    roots = np.roots([a, b, c])
    real = [float(root.real) for root in roots if abs(root.imag) < 1e-12]
    between = [root for root in real if means[0] <= root <= means[1]]
    if between:
        return between[0]
    middle = float(np.mean(means))
    return float(means[0] if (a * middle + b) * middle + c > 0 else means[1])


class MixtureThreshold(Policy):
    """``H_init > tau``, with tau where two Gaussians fitted to the entropies seen cross.

    STEER fits a two-component Gaussian mixture to the confidence of steps instead of a fixed
    threshold: one component for easy steps, one for hard ones, and a step goes to the large model
    where the hard one is likelier. Here the mixture is of the entropies of first tokens (by
    scikit-learn: the extra ``evaluate``), fitted again now and then. The rule remembers what it
    saw, of all sequences and runs that ask it: two runs of another order may decide otherwise.
    """

    def __init__(
        self,
        *,
        start: float = 1.0,
        warm_up: int = 64,
        low: float = 0.0,
        high: float = math.inf,
        refit: int = 32,
        window: int = 4096,
    ) -> None:
        """The rule.

        Args:
            start: Threshold until ``warm_up`` glimpses have been seen, nats.
            warm_up: Glimpses, >= 2.
            low: Least threshold after that, nats.
            high: Largest, at least ``low``.
            refit: Glimpses after which the mixture is fitted again, >= 1.
            window: Glimpses that are remembered, at least ``warm_up``.

        Raises:
            ModuleNotFoundError: scikit-learn is not installed.
            TypeError: A value of another type.
            ValueError: One out of range.
        """
        try:
            from sklearn.mixture import GaussianMixture
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "MixtureThreshold needs scikit-learn; install it with: pip install"
                " 'glimprouter[evaluate]'"
            ) from error
        for threshold in (start, low, high):
            RouterConfig(threshold=threshold)  # the same checks
        if high < low:
            raise ValueError(f"high must be at least low, got low={low:g} and high={high:g}")
        check_integer("warm_up", warm_up, 2)
        check_integer("refit", refit, 1)
        check_integer("window", window, warm_up)
        self.threshold = start
        self.warm_up, self.refit = warm_up, refit
        self.low, self.high = low, high
        self._mixture = GaussianMixture
        self._seen: deque[float] = deque(maxlen=window)
        self._unfitted = refit  # so that the end of the warm-up is the first fit

    def before(self, glimpse: Glimpse) -> ModelName:
        """By the entropy, which is remembered."""
        if len(self._seen) >= self.warm_up and self._unfitted >= self.refit:
            self._fit()
        large = glimpse.entropy > self.threshold
        self._seen.append(glimpse.entropy)
        self._unfitted += 1
        return "large" if large else "small"

    def _fit(self) -> None:
        values = np.asarray(self._seen)
        self._unfitted = 0
        if np.ptp(values) == 0:
            return  # one value has no two humps
        # From the halves below and above the middle of the range, so that no seed is needed.
        above = values > (values.min() + values.max()) / 2
        starts = [[values[~above].mean()], [values[above].mean()]]
        fitted = self._mixture(2, means_init=starts, reg_covar=1e-6).fit(values[:, None])
        order = np.argsort(fitted.means_[:, 0])
        deviations = np.sqrt(fitted.covariances_[order, 0, 0])
        tau = crossing(fitted.weights_[order], fitted.means_[order, 0], deviations)
        self.threshold = min(max(tau, self.low), self.high)
