"""ARI's calibration: the threshold at which the full model decides all that would be different."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glimprouter.chains.adaptive_resolution import check_ids
from glimprouter.chains.resolution_pair import check_one_architecture
from glimprouter.glimpse import Status, glimpse
from glimprouter.policies.checks import check_probability


class ResolutionMargins(NamedTuple):
    """Decisions of both models on the same texts.

    Attributes:
        margins: Of the reduced model, float32 ``[n]``.
        agree: Whether the two models' likeliest tokens are the same, ``[n]``.
    """

    margins: npt.NDArray[np.float32]
    agree: npt.NDArray[np.bool_]

    def threshold(self, share: float = 1.0) -> float:
        """The smallest T at or below which ``share`` of the differing decisions lie; 0 if none do.

        Args:
            share: In [0, 1]; 1 as in the source: no differing decision seen here would be kept.

        Raises:
            TypeError: No number.
            ValueError: Out of range.
        """
        check_probability("share", share)
        differing = np.sort(self.margins[~self.agree])
        count = math.ceil(share * len(differing) - 1e-9)  # 0.7 * 10 is 7, not 8
        return float(differing[count - 1]) if count else 0.0

    def full_share(self, threshold: float) -> float:
        """The share of these decisions that the full model gets at a threshold."""
        return float(np.mean(self.margins <= threshold))

    def differing_share(self, threshold: float) -> float:
        """The share of these decisions that the reduced model keeps and decides differently."""
        return float(np.mean(~self.agree & (self.margins > threshold)))


def resolution_margins(
    reduced: Any,
    full: Any,
    texts: Sequence[Sequence[int]],
    *,
    starts: Sequence[int] | None = None,
) -> ResolutionMargins:
    """Margins before every token of texts that a model would write, one text at a time.

    Each model reads with keys and values of its own, so what the hand-over by casting changes is
    not in here. The threshold is good for texts like these: give what the models write.

    Args:
        reduced: As in :class:`AdaptiveResolution`.
        full: Likewise.
        texts: Ids; none empty.
        starts: Of each text, the place of the first token that is written, >= 1: prompts are not
            decided. None: behind every token of the texts, the last one included.

    Raises:
        ValueError: No text, an empty one, an id outside the vocabulary, starts that leave nothing
            of a text, or two architectures.
        RuntimeError: Logits that hold NaN or +inf.
    """
    import torch

    check_one_architecture(reduced, full)
    listed = [check_ids(full, ids) for ids in texts]
    if not listed:
        raise ValueError("give at least one text")
    if starts is not None:
        if len(starts) != len(listed):
            raise ValueError(f"{len(listed)} texts have {len(starts)} starts")
        for ids, start in zip(listed, starts, strict=True):
            if not 1 <= start < len(ids):
                raise ValueError(f"a start must lie in [1, {len(ids)}), got {start}")
    margins, agree = [], []
    with torch.inference_mode():
        for place, ids in enumerate(listed):
            kept = slice(None) if starts is None else slice(starts[place] - 1, -1)
            rows = []
            for model in (reduced, full):
                logits = model(torch.tensor([ids], device=model.device)).logits[0, kept]
                rows.append(glimpse(logits.float().contiguous()))
                if not bool((rows[-1].status == int(Status.OK)).all()):
                    raise RuntimeError("a model gave logits that are no distribution")
            margins.append(rows[0].margin.cpu().numpy())
            agree.append(rows[0].token.cpu().numpy() == rows[1].token.cpu().numpy())
    return ResolutionMargins(np.concatenate(margins), np.concatenate(agree))
