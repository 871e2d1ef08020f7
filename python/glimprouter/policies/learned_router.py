"""Arbitrage's learned form: a classifier says how likely the large model's step is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from glimprouter.policies.base import WrittenStep
from glimprouter.policies.checks import check_probability
from glimprouter.policies.step_score import StepScore

FEATURES = (
    "entropy",
    "mean_entropy",
    "mean_logprob",
    "perplexity",
    "num_tokens",
    "index",
    "position",
    "first_logprob",
    "least_logprob",
    "largest_entropy",
)


def step_features(step: WrittenStep, names: Sequence[str] = FEATURES) -> list[float]:
    """Numbers that describe a written step, as a learned router reads them.

    Args:
        step: The step.
        names: Which, of ``FEATURES``.

    Returns:
        In the order of the names; NaN for the entropy of a step without glimpse.
    """
    values = {
        "entropy": np.nan if step.entropy is None else step.entropy,
        "mean_entropy": step.mean_entropy,
        "mean_logprob": step.mean_logprob,
        "perplexity": step.perplexity,
        "num_tokens": len(step.token_ids),
        "index": step.index,
        "position": step.position,
        "first_logprob": step.logprobs[0],
        "least_logprob": min(step.logprobs),
        "largest_entropy": max(step.entropies),
    }
    return [float(values[name]) for name in names]


class LearnedRouter(StepScore):
    """The large model writes a step anew where ``P(its step is better | features) > threshold``.

    Arbitrage (arXiv 2512.05033) escalates a step of the small model by a router that predicts the
    advantage of the large one, there a fine-tuned model that reads the text. The rule is here; the
    router is yours, any object with scikit-learn's ``predict_proba`` and ``classes_``, fitted on
    :func:`step_features` of recorded steps, with a label that is 1 (or True) where the large
    model's step was the better one.
    """

    def __init__(
        self, router: Any, threshold: float = 0.5, features: Sequence[str] = FEATURES
    ) -> None:
        """The rule.

        Args:
            router: The fitted classifier.
            threshold: tau, a probability.
            features: Names that it was fitted on, in order.

        Raises:
            TypeError: An object without ``predict_proba`` or ``classes_`` (it was not fitted), or a
                threshold that is no number.
            ValueError: Unknown features, classes without 1, or a threshold outside [0, 1].
        """
        if not hasattr(router, "predict_proba") or not hasattr(router, "classes_"):
            raise TypeError(
                "router must be a fitted classifier with predict_proba and classes_, got"
                f" {type(router).__name__}"
            )
        if unknown := [name for name in features if name not in FEATURES]:
            raise ValueError(f"unknown feature {unknown[0]!r}; there are {', '.join(FEATURES)}")
        classes = list(router.classes_)
        if 1 not in classes:
            raise ValueError(f"the router knows the classes {classes}, and none of them is 1")
        check_probability("threshold", threshold)
        self.router = router
        self.threshold = threshold
        self.features = tuple(features)
        self._better = classes.index(1)

    def score(self, step: WrittenStep) -> float:
        """The router's probability that the large model's step is better."""
        probabilities = self.router.predict_proba([step_features(step, self.features)])
        return float(np.asarray(probabilities)[0, self._better])

    def rejects(self, score: float) -> bool:
        """Above the threshold."""
        return score > self.threshold
