"""Do Stop Me Now (arXiv 2510.22679): what kind of response it will be, from its first token.

The log-probabilities of the response's first token, over the whole vocabulary, are a point; the k
nearest points of a labelled reference set vote (refusal, thanks, greeting: stop, or stay with the
small model; substantive: go on). No training, but a reference set, which is the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glimprouter.chains.forward import ids_of, last_logits


class FirstTokenNeighbours:
    """A vote of the k nearest reference responses, by scikit-learn (Euclidean distance)."""

    def __init__(
        self, logprobs: npt.ArrayLike, labels: Sequence[str], *, neighbours: int = 3
    ) -> None:
        """The reference set.

        Args:
            logprobs: Of the first tokens, ``[n, V]``, nats, finite.
            labels: ``[n]``.
            neighbours: k, in [1, n].

        Raises:
            ImportError: scikit-learn is not installed.
            ValueError: Shapes that do not fit, or values that are not finite.
        """
        from sklearn.neighbors import KNeighborsClassifier

        points = _points(logprobs)
        if len(labels) != len(points):
            raise ValueError(f"{len(points)} references have {len(labels)} labels")
        if not 1 <= neighbours <= len(points):
            raise ValueError(f"neighbours must lie in [1, {len(points)}], got {neighbours}")
        self._width = points.shape[1]
        self._votes = KNeighborsClassifier(n_neighbors=neighbours).fit(points, list(labels))

    def labels_of(self, logprobs: npt.ArrayLike) -> list[str]:
        """The label of each response.

        Args:
            logprobs: ``[B, V]``, as those of the reference set.

        Raises:
            ValueError: Another width, or values that are not finite.
        """
        points = _points(logprobs)
        if points.shape[1] != self._width:
            raise ValueError(
                f"the reference set has {self._width} tokens, these rows {points.shape[1]}: they"
                " are of another model"
            )
        return [str(label) for label in self._votes.predict(points)]


def _points(logprobs: npt.ArrayLike) -> npt.NDArray[np.float64]:
    points = np.asarray(logprobs, dtype=np.float64)
    if points.ndim != 2 or points.size == 0:
        raise ValueError(f"log-probabilities must be [n, V], got {list(points.shape)}")
    if not np.isfinite(points).all():
        raise ValueError("log-probabilities must be finite; give a floor to those of -inf")
    return points


def first_token_logprobs(model: Any, prompts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    """Log-probabilities of the first token behind each prompt, over the vocabulary.

    Args:
        model: A causal language model of transformers.
        prompts: Ids; none empty.

    Returns:
        ``[n, V]``, nats.

    Raises:
        ValueError: No prompt, or an empty one.
    """
    import torch

    rows = []
    with torch.inference_mode():
        for ids in ids_of(model, prompts):
            logits = last_logits(model, ids, 1)[0]
            rows.append(torch.log_softmax(logits.float(), -1).cpu().numpy())
    return np.stack(rows)
