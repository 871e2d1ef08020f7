"""O1-Pruner (arXiv 2501.12570): the reward that shortens chains without making them wrong.

``r = (L_ref - L) / L + alpha (A - A_ref)``, clipped to [-2, 4]: L is the length of a chain and A
whether it is right; L_ref and A_ref are the means of the reference model's chains on the same
problem. The source trains with it; here it scores recorded chains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

LOWEST, HIGHEST = -2.0, 4.0


def length_harmonizing_rewards(
    lengths: Sequence[int],
    right: Sequence[bool],
    reference_lengths: Sequence[int],
    reference_right: Sequence[bool],
    *,
    alpha: float,
) -> npt.NDArray[np.float64]:
    """The reward of each chain of one problem.

    Args:
        lengths: Tokens of the chains, >= 1.
        right: Whether each is.
        reference_lengths: Tokens of the reference model's chains of the same problem, >= 1.
        reference_right: Whether each is.
        alpha: Weight of being right.

    Returns:
        One a chain, in [-2, 4].

    Raises:
        ValueError: No chain, lengths below 1, or lists of different lengths.
    """
    for name, tokens, labels in (
        ("chains", lengths, right),
        ("reference chains", reference_lengths, reference_right),
    ):
        if not tokens or len(tokens) != len(labels) or min(tokens) < 1:
            raise ValueError(f"{name} must have lengths >= 1 and a label each, at least one")
    length, correct = np.asarray(lengths, np.float64), np.asarray(right, np.float64)
    shorter = (np.mean(reference_lengths) - length) / length
    gain = correct - np.mean(np.asarray(reference_right, np.float64))
    rewards: npt.NDArray[np.float64] = np.clip(shorter + alpha * gain, LOWEST, HIGHEST)
    return rewards
