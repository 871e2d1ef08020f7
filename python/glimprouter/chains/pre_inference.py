"""Self-Route (arXiv 2505.20664): whether a problem needs long reasoning, before any is written.

A short pre-inference leaves a hidden state at the end of the prompt; a logistic router reads it and
chooses long or short reasoning. The router is trained on problems whose short answers were checked:
here by scikit-learn, on the user's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glimprouter.chains.forward import ids_of
from glimprouter.chains.logistic import chances_of, fitted


def pre_inference_features(
    model: Any, prompts: Sequence[Sequence[int]], *, tokens: int = 0
) -> npt.NDArray[np.float32]:
    """The last layer's hidden state behind each prompt.

    Args:
        model: A causal language model of transformers.
        prompts: Ids; none empty.
        tokens: Of the pre-inference: so many greedy tokens are written first.

    Returns:
        ``[n, hidden size]``, before the last norm or behind it, as the model gives it.

    Raises:
        ValueError: No prompt, an empty one, or a negative number of tokens.
    """
    import torch

    if tokens < 0:
        raise ValueError(f"tokens must be >= 0, got {tokens}")
    rows = []
    with torch.inference_mode():
        for ids in ids_of(model, prompts):
            seen = ids
            if tokens:
                seen = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    do_sample=False,
                )
            states = model(seen, output_hidden_states=True).hidden_states[-1]
            rows.append(states[0, -1].float().cpu().numpy())
    return np.stack(rows)


class PreInferenceRouter:
    """Logistic regression over standardized features, by scikit-learn."""

    def __init__(self, features: npt.ArrayLike, needs_long: Sequence[bool]) -> None:
        """Trains.

        Args:
            features: ``[n, d]``, finite.
            needs_long: ``[n]``: whether the short answer was wrong.

        Raises:
            ImportError: scikit-learn is not installed.
            ValueError: Shapes that do not fit, or problems of one kind only.
        """
        self._router = fitted(features, needs_long, "problems")

    def chances(self, features: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The chance of each problem that it needs long reasoning, in [0, 1]."""
        return chances_of(self._router, features)
