"""A2R (arXiv 2509.22044): a small explorer writes several solutions, a large synthesizer one.

N whole solutions come from the small model; the large model reads the problem with all of them and
reasons over them. Training the explorer is optional in the source, and not done here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from glimprouter.chains.vote import Vote, majority
from glimprouter.config import check_integer, check_random_key

if TYPE_CHECKING:
    from glimprouter.hf import Result, RoutedModel


class Exploration(NamedTuple):
    """What came of a problem.

    Attributes:
        solutions: Of the explorers.
        vote: Of the explorers, what there would be without the synthesizer.
        synthesis: The large model's.
    """

    solutions: list[Result]
    vote: Vote
    synthesis: Result


def candidate_list(problem: str, answers: Sequence[str]) -> str:
    """The problem, then the candidate answers, numbered."""
    candidates = "\n".join(f"Candidate {n}: {text}" for n, text in enumerate(answers, 1))
    return (
        f"{problem}\n\nSolutions by others, which may be wrong:\n{candidates}\n\n"
        "Weigh them, and solve the problem."
    )


def explore_and_synthesize(
    model: RoutedModel,
    problem: str,
    *,
    explorers: int = 4,
    seed: int = 0,
    compose: Callable[[str, Sequence[str]], str] = candidate_list,
    whole: bool = False,
) -> Exploration:
    """Answers one problem by many small solutions and one large reading of them.

    Args:
        model: A pair.
        problem: The user's message.
        explorers: N, >= 1.
        seed: Of all draws, in [0, 2^64).
        compose: Makes the synthesizer's message of the problem and the candidates.
        whole: Whether the candidates are whole solutions, thinking included, or answers only.

    Raises:
        TypeError: A number that is no integer.
        ValueError: Out of range, or a message that leaves no room for an answer.
    """
    check_integer("explorers", explorers, 1)
    check_random_key("seed", seed)
    seeds = [(seed + each) % 2**64 for each in range(explorers)]
    solutions = model.generate([problem] * explorers, seeds, route="small", answer_model="small")
    candidates = [solution.text if whole else solution.answer for solution in solutions]
    message = compose(problem, candidates)
    (synthesis,) = model.generate([message], seed, route="large", answer_model="large")
    return Exploration(solutions, majority(s.answer for s in solutions), synthesis)
