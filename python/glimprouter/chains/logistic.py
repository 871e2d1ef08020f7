"""Logistic regression over standardized features, by scikit-learn: the routers trained here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def fitted(features: npt.ArrayLike, labels: Sequence[bool], what: str) -> Any:
    """A classifier that has learned the labels.

    Args:
        features: ``[n, d]``, finite.
        labels: ``[n]``.
        what: The name of what they are of, for messages.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: Shapes that do not fit, or labels of one kind only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    points = np.asarray(features, dtype=np.float64)
    if points.ndim != 2 or len(points) != len(labels):
        raise ValueError(
            f"features must be [n, d] for {len(labels)} {what}, got {list(points.shape)}"
        )
    if len(set(map(bool, labels))) < 2:
        raise ValueError(f"all {what} are of one kind; a router learns nothing from them")
    router = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return router.fit(points, [bool(label) for label in labels])


def chances_of(router: Any, features: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The chance of each row that its label is True, in [0, 1]."""
    chances = router.predict_proba(np.asarray(features, dtype=np.float64))
    return np.asarray(chances[:, 1], dtype=np.float64)
