"""A2R (arXiv 2509.22044): a small explorer writes several solutions, a large synthesizer one.

N whole solutions come from the small model; the large model reads the problem with all of them and
reasons over them. Training the explorer is optional in the source, and not done here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from glimprouter.chains.vote import Vote, majority
from glimprouter.chains.whole_chains import write_alone
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
    check_random_key("seed", seed)
    (found,) = explore_and_synthesize_each(
        model, [problem], [seed], explorers=explorers, compose=compose, whole=whole
    )
    return found


def explore_and_synthesize_each(
    model: RoutedModel,
    problems: Sequence[str],
    seeds: Sequence[int],
    *,
    explorers: int = 4,
    compose: Callable[[str, Sequence[str]], str] = candidate_list,
    whole: bool = False,
    finished: Callable[[int, Exploration], None] | None = None,
) -> list[Exploration]:
    """Answers several problems, the explorers of all at once, then all synthesizers.

    Args:
        model: A pair.
        problems: The user's messages.
        seeds: One a problem, in [0, 2^64); explorer ``n`` of a problem has ``n`` more.
        explorers: N, >= 1.
        compose: As in :func:`explore_and_synthesize`.
        whole: Likewise.
        finished: Called with each one once it is there, and the index of its problem.

    Raises:
        TypeError: A number that is no integer.
        ValueError: Out of range, or a message that leaves no room for an answer.
    """
    check_integer("explorers", explorers, 1)
    prompts = [problem for problem in problems for _ in range(explorers)]
    own = [(seed + each) % 2**64 for seed in seeds for each in range(explorers)]
    every = write_alone(model, prompts, own, "small")
    groups = [every[n : n + explorers] for n in range(0, len(every), explorers)]
    messages = [
        compose(problem, [one.text if whole else one.answer for one in solutions])
        for problem, solutions in zip(problems, groups, strict=True)
    ]
    found: dict[int, Exploration] = {}

    def synthesized(place: int, synthesis: Result) -> None:
        solutions = groups[place]
        vote = majority(one.answer for one in solutions)
        found[place] = Exploration(solutions, vote, synthesis)
        if finished is not None:
            finished(place, found[place])

    write_alone(model, messages, seeds, "large", synthesized)
    return [found[place] for place in range(len(groups))]
