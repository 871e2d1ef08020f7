"""A router for :class:`BlockSkipping` that is trained on what blocks did to recorded tokens.

FTP trains a network of two layers end to end, with the model's own outputs to compare with. Here it
is logistic regression on the same four scalars, for which a token may skip a block where the block
hardly turned its hidden state (cosine similarity of input and output); and the share of a block is
the share of its tokens for which that is so, instead of one found by search. That is less: nobody
asks what becomes of the later blocks and of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glimprouter.chains.block_scorer import BlockScorer, TokenFeatures
from glimprouter.chains.block_skipping import BlockSkipping
from glimprouter.chains.forward import ids_of
from glimprouter.chains.logistic import chances_of, fitted


class BlockRecord(NamedTuple):
    """What blocks did to tokens, nothing skipped; a row a token and block.

    Attributes:
        block: Index, int64 ``[n]``.
        features: Position, attention and rank, as in :class:`TokenFeatures`, ``[n, 3]``.
        similarity: Cosine of the angle between the hidden states before and behind the block,
            ``[n]``.
    """

    block: npt.NDArray[np.int64]
    features: npt.NDArray[np.float64]
    similarity: npt.NDArray[np.float64]

    def shares(self, bound: float) -> list[float]:
        """Of each block, the share of tokens whose similarity is at least ``bound``."""
        return [float(np.mean(part >= bound)) for part in self._by_block()]

    def order(self) -> list[int]:
        """Blocks, from the one that turns hidden states least, in the mean, to the one most."""
        return [int(b) for b in np.argsort([-part.mean() for part in self._by_block()])]

    def examples(self, bound: float) -> tuple[npt.NDArray[np.float64], list[bool]]:
        """What a router learns from: the four scalars of each row, and whether it may skip."""
        share = np.asarray(self.shares(bound))[self.block]
        features = np.concatenate([self.features, share[:, None]], axis=1)
        return features, (self.similarity >= bound).tolist()

    def _by_block(self) -> list[npt.NDArray[np.float64]]:
        return [self.similarity[self.block == b] for b in range(int(self.block.max()) + 1)]


class _Recorder(BlockScorer):
    """Skips nothing, and remembers what it is told, and what the blocks do."""

    reads_attention = True

    def __init__(self) -> None:
        self.features: list[npt.NDArray[np.float64]] = []
        self.blocks: list[npt.NDArray[np.int64]] = []
        self.similarity: list[npt.NDArray[np.float64]] = []

    def chances(self, features: TokenFeatures) -> npt.NDArray[np.float64]:
        self.features.append(features.matrix()[:, :3])
        self.blocks.append(np.full(len(features.position), features.block, dtype=np.int64))
        return np.zeros(len(features.position))

    def see(self, _: Any, arguments: Any, options: dict[str, Any], output: Any) -> None:
        import torch

        before = arguments[0] if arguments else options["hidden_states"]
        similarity = torch.cosine_similarity(before[0].double(), output[0].double(), dim=-1)
        self.similarity.append(similarity.cpu().numpy())


def record_blocks(model: Any, texts: Sequence[Sequence[int]]) -> BlockRecord:
    """What each block does to each token of texts, one text at a time.

    Args:
        model: As in :class:`BlockSkipping`, with attention "eager".
        texts: Ids; none empty.

    Raises:
        ValueError: No text, an empty one, or a model of another form.
    """
    import torch

    recorder = _Recorder()
    skipping = BlockSkipping(model, recorder)
    hooks = [
        block.register_forward_hook(recorder.see, with_kwargs=True)
        for block in model.get_decoder().layers
    ]
    try:
        with skipping, torch.inference_mode():
            for ids in ids_of(model, texts):
                model(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return BlockRecord(
        np.concatenate(recorder.blocks),
        np.concatenate(recorder.features),
        np.concatenate(recorder.similarity),
    )


class SkipRouter(BlockScorer):
    """Logistic regression over the four scalars, by scikit-learn: one for all blocks."""

    reads_attention = True

    def __init__(self, features: npt.ArrayLike, may_skip: Sequence[bool]) -> None:
        """Trains.

        Args:
            features: Position, attention, rank and share, ``[n, 4]``, finite
                (:meth:`BlockRecord.examples`).
            may_skip: ``[n]``.

        Raises:
            ImportError: scikit-learn is not installed.
            ValueError: Shapes that do not fit, or tokens of one kind only.
        """
        points = np.asarray(features, dtype=np.float64)
        if points.ndim == 2 and points.shape[1] != 4:
            raise ValueError(f"features must be [n, 4], got {list(points.shape)}")
        self._router = fitted(points, may_skip, "tokens")

    def chances(self, features: TokenFeatures) -> npt.NDArray[np.float64]:
        """The chance of each token that the block hardly turns it, in [0, 1]."""
        return chances_of(self._router, features.matrix())
