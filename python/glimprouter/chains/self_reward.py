"""LaSeR (arXiv 2510.14943): how right a solution is, read from its last token.

``r = beta (ln pi(z_c | x, y) - c_ref)`` with a token z_c that the model hardly ever writes, behind
the problem x and the solution y. A model is trained (GRPO and a mean squared error) so that r comes
close to 1 for right solutions and to 0 for wrong ones; an untrained model has the number, too, but
nothing says that it means anything. The source has beta 0.1, c_ref -23 (Qwen) and accepts r > 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from glimprouter.chains.forward import ids_of, last_logits
from glimprouter.glimpse import glimpse

ACCEPTED = 0.5


def self_reward(logprob: float, *, beta: float = 0.1, reference: float = -23.0) -> float:
    """``beta (logprob - reference)``.

    Args:
        logprob: ln pi(z_c | x, y), nats.
        beta: Scale.
        reference: c_ref, nats: what the model gives that token anywhere.

    Raises:
        ValueError: A log-probability above 0, or a number that is not finite.
    """
    if not (math.isfinite(beta) and math.isfinite(reference)):
        raise ValueError(f"beta and reference must be finite, got {beta!r} and {reference!r}")
    if math.isnan(logprob) or logprob > 0:
        raise ValueError(f"a log-probability is at most 0, got {logprob!r}")
    return beta * (logprob - reference)


def last_token_self_reward(
    model: Any,
    sequences: Sequence[Sequence[int]],
    token: int,
    *,
    beta: float = 0.1,
    reference: float = -23.0,
) -> list[float]:
    """The self-reward of each problem with its solution, by one glimpse of the last position.

    Args:
        model: A causal language model of transformers.
        sequences: Ids of problem and solution; none empty.
        token: z_c, an id of the model.
        beta: As in :func:`self_reward`.
        reference: As in :func:`self_reward`.

    Raises:
        ValueError: No sequence, an empty one, or a token outside the vocabulary.
    """
    import torch

    rewards = []
    with torch.inference_mode():
        for ids in ids_of(model, sequences):
            logits = last_logits(model, ids, 1)
            logprobs = glimpse(logits.float().contiguous(), logprob_ids=[token]).logprobs
            rewards.append(self_reward(float(logprobs[0, 0]), beta=beta, reference=reference))
    return rewards
