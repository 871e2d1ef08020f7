"""Shape and schedule of every model: one place for what was chosen by trying."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_SIZE = 32  # in every model, so that every serving engine takes the pairs


@dataclass(frozen=True, slots=True)
class Recipe:
    """Shape and schedule of one model.

    Attributes:
        width: Hidden size.
        layers: Number of layers.
        heads: Query heads; two of keys and values.
        feed_forward: Width of the MLP.
        steps: Steps of 32 texts at most.
        enough: Accuracy on development problems at which training ends before, in [0, 1]: a small
            model must err, and a large one has nothing more to learn.
        muon_rate: Learning rate of the matrices.
        adamw_rate: Learning rate of embeddings and norms.
        bfloat16: Whether matrix products are of bfloat16 (the weights in training never are).
    """

    width: int
    layers: int
    heads: int
    feed_forward: int
    steps: int
    enough: float
    muon_rate: float = 4e-3
    adamw_rate: float = 3e-3
    bfloat16: bool = False


SMALL_IS_ENOUGH, LARGE_IS_ENOUGH = 0.6, 0.985

RECIPES: dict[tuple[str, str], Recipe] = {
    ("list_reduction", "small"): Recipe(64, 2, 4, 128, 1100, SMALL_IS_ENOUGH),
    ("list_reduction", "large"): Recipe(
        192, 8, 6, 448, 1600, LARGE_IS_ENOUGH, 3e-3, 2e-3, bfloat16=True
    ),
    ("arithmetic", "small"): Recipe(64, 2, 4, 128, 1000, SMALL_IS_ENOUGH),
    ("arithmetic", "large"): Recipe(128, 4, 4, 352, 1200, LARGE_IS_ENOUGH, 3e-3, 2e-3),
    ("search", "small"): Recipe(64, 2, 4, 128, 1000, SMALL_IS_ENOUGH),
    ("search", "large"): Recipe(128, 6, 4, 352, 1500, LARGE_IS_ENOUGH, 3e-3, 2e-3),
    ("repair", "small"): Recipe(64, 2, 4, 128, 1000, SMALL_IS_ENOUGH),
    ("repair", "large"): Recipe(128, 4, 4, 352, 1500, LARGE_IS_ENOUGH, 3e-3, 2e-3),
}
TASKS = tuple(dict.fromkeys(task for task, _ in RECIPES))
