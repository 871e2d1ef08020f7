"""Shape and schedule of every model: one place for what was chosen by trying."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
WEAK_IS_ENOUGH, STRONG_IS_ENOUGH = 0.3, 0.85  # for pairs with another gap
GAPS = ("weak", "strong")


@dataclass(frozen=True, slots=True)
class PairRecipe:
    """The models of a pair.

    Attributes:
        task: That they are trained on.
        small: Of the small model.
        large: Of the large one.
        digits: Of a number in one token of their tokenizer, at most.
        small_seeds: How many small models are made, of seeds 1, 2, ...
        gaps: Whether a weaker and a stronger small model are made, too.
        texts: Other training texts than the task's own, by name; None for these.
        large_of: Pair whose large model, and so its tokenizer, it takes; None for its own.
    """

    task: str
    small: Recipe
    large: Recipe
    digits: int = 1
    small_seeds: int = 3
    gaps: bool = False
    texts: str | None = None
    large_of: str | None = None

    def recipe(self, model: str) -> Recipe:
        """Of one of its models: ``"small"``, ``"large"``, or one of GAPS.

        The weak one is the small one, stopped earlier; the strong one has twice the steps.
        """
        if model == "large":
            return self.large
        if model == "weak":
            return replace(self.small, enough=WEAK_IS_ENOUGH)
        if model == "strong":
            return replace(self.small, enough=STRONG_IS_ENOUGH, steps=2 * self.small.steps)
        return self.small


_SMALL = Recipe(64, 2, 4, 128, 1000, SMALL_IS_ENOUGH)
_LARGE_ARITHMETIC = Recipe(128, 4, 4, 352, 1200, LARGE_IS_ENOUGH, 3e-3, 2e-3)
_LARGE_REPAIR = Recipe(128, 4, 4, 352, 1500, LARGE_IS_ENOUGH, 3e-3, 2e-3)

# By name; those of a task's own name are its pair, the others are meant to vary one thing, and are
# trained anew but for a large model that they take from another pair.
PAIRS: dict[str, PairRecipe] = {
    "list_reduction": PairRecipe(
        "list_reduction",
        Recipe(64, 2, 4, 128, 1100, SMALL_IS_ENOUGH),
        Recipe(192, 8, 6, 448, 1600, LARGE_IS_ENOUGH, 3e-3, 2e-3, bfloat16=True),
    ),
    "arithmetic": PairRecipe("arithmetic", _SMALL, _LARGE_ARITHMETIC, gaps=True),
    "search": PairRecipe(
        "search", _SMALL, Recipe(128, 6, 4, 352, 1500, LARGE_IS_ENOUGH, 3e-3, 2e-3)
    ),
    "repair": PairRecipe("repair", _SMALL, _LARGE_REPAIR, gaps=True),
    # With single digits the first token would be the ten's, which is the easier one.
    "arithmetic-result-first": PairRecipe(
        "arithmetic_result_first", _SMALL, _LARGE_ARITHMETIC, digits=2, small_seeds=2
    ),
    "repair-digit-pairs": PairRecipe("repair", _SMALL, _LARGE_REPAIR, digits=2, small_seeds=2),
    # A model that has never seen a slip of its own has no reason to expect one.
    "repair-texts-without-slips": PairRecipe(
        "repair",
        _SMALL,
        _LARGE_REPAIR,
        small_seeds=2,
        texts="repair without slips",
        large_of="repair",
    ),
}
