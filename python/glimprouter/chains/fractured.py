"""Fractured sampling (arXiv 2505.12992): answers from several depths of several chains.

Of n chains, each is cut at H depths: prefix i holds the first ``floor(i L / H)`` tokens of a chain
of L, then its thinking is closed, and m answers follow. All answers vote. Nothing needs training.

Each cut is a fork of its chain, so no prefix is computed twice: the keys and values of both models
up to the cut are shared pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from glimprouter.chains.vote import Vote, majority
from glimprouter.config import check_integer, check_random_key

if TYPE_CHECKING:
    from glimprouter.hf import Result, RoutedModel, Run


class Fracture(NamedTuple):
    """One answer.

    Attributes:
        chain: Index of its chain.
        depth: Of its cut, 1 .. H; H is the whole chain.
        prefix: Tokens of the thinking that it has seen.
        written: Tokens that were written for it alone: closing ids and answer, and the thinking
            for the first answer of a whole chain.
        result: The sequence.
    """

    chain: int
    depth: int
    prefix: int
    written: int
    result: Result


class FracturedSampling(NamedTuple):
    """What came of a problem.

    Attributes:
        fractures: By chain, depth and answer.
        vote: Over all answers; of equally frequent ones the one from the deepest cut.
    """

    fractures: list[Fracture]
    vote: Vote

    def vote_of(self, chains: int, depths: Sequence[int]) -> Vote:
        """The vote of fewer of them, of which the same run tells: the first chains, some depths."""
        return _vote(
            fracture
            for fracture in self.fractures
            if fracture.chain < chains and fracture.depth in depths
        )


class _Cut(NamedTuple):
    chain: int
    depth: int
    prefix: int
    shared: int  # tokens that were there before it


def fractured_sampling(
    model: RoutedModel,
    prompt: Any,
    *,
    chains: int = 4,
    depths: int = 4,
    answers: int = 1,
    seed: int = 0,
    **overrides: Any,
) -> FracturedSampling:
    """Answers one prompt from each depth of each chain.

    A chain that ends in the very pass that ends its thinking has no cuts.

    Args:
        model: A pair; its ``max_sequences`` must hold the ``depths * answers`` sequences of a
            chain. More chains than it holds follow one another.
        prompt: As for :meth:`RoutedModel.generate`.
        chains: n, >= 1.
        depths: H, >= 1; at 1 this is plain voting over whole chains.
        answers: m, >= 1: answers of each cut.
        seed: Of all draws, in [0, 2^64).
        **overrides: Fields of :class:`RouterConfig`, such as ``temperature``.

    Raises:
        TypeError: A number that is no integer.
        ValueError: Out of range, or a chain does not fit.
        RuntimeError: Invalid logits with ``on_invalid="raise"``.
    """
    for name, value in (("chains", chains), ("depths", depths), ("answers", answers)):
        check_integer(name, value, 1)
    check_random_key("seed", seed)
    together = model.max_sequences // (depths * answers)
    if together == 0:
        raise ValueError(
            f"a chain has {depths} depths x {answers} answers = {depths * answers} sequences, and"
            f" the RoutedModel holds {model.max_sequences}; make it with a larger max_sequences"
        )
    fractures: list[Fracture] = []
    for first in range(0, chains, together):
        count = min(together, chains - first)
        seeds = [(seed + first + each) % 2**64 for each in range(count)]
        run = model.stream([prompt] * count, seeds, **overrides)
        fractures += _of_run(run, first, count, depths, answers)
    fractures.sort(key=lambda fracture: (fracture.chain, fracture.depth))
    return FracturedSampling(fractures, _vote(fractures))


def _vote(fractures: Iterable[Fracture]) -> Vote:
    """Of equally frequent answers the one that has seen most of a chain."""
    deepest = sorted(fractures, key=lambda fracture: -fracture.depth)
    return majority(fracture.result.answer for fracture in deepest)


def _of_run(run: Run, first: int, count: int, depths: int, answers: int) -> list[Fracture]:
    cuts: dict[int, _Cut] = {}
    results: dict[int, Result] = {}
    while events := run.step():
        for event in events:
            if event.kind == "answer_start" and event.sequence < count:
                _cut(run, event.sequence, first, depths, answers, cuts)
            if event.result is not None:
                results[event.sequence] = event.result
    for sequence in range(count):  # one that wrote no answer has no cuts
        thought = _thought(results[sequence])
        cuts.setdefault(sequence, _Cut(first + sequence, depths, thought, 0))
    return [
        Fracture(cut.chain, cut.depth, cut.prefix, result.trace.total_tokens - cut.shared, result)
        for sequence, result in sorted(results.items())
        for cut in [cuts[sequence]]
    ]


def _thought(result: Result) -> int:
    return sum(step.num_tokens for step in result.trace.steps)


def _cut(
    run: Run, chain: int, first: int, depths: int, answers: int, cuts: dict[int, _Cut]
) -> None:
    """Forks a chain that has been thought to its end, at each depth."""
    trace = run.trace(chain)
    length = sum(step.num_tokens for step in trace.steps)
    cuts[chain] = _Cut(first + chain, depths, length, 0)
    if chain not in run.sequences:
        return
    if trace.answer_model == "large":
        run.catch_up(chain)  # once, and not by each of the forks
    there = len(run.generated(chain))
    thought = there - trace.answer_tokens  # closing ids included; the answer may have begun
    for depth in range(1, depths + 1):
        prefix = depth * length // depths
        for answer in range(answers):
            whole = depth == depths
            if prefix == 0 or (whole and answer == 0):  # nothing to cut, or the chain's own answer
                continue
            twin = run.fork(chain)
            kept = thought if whole else prefix
            run.rewind(twin, there - kept, exact=False)
            if not whole:
                run.end_thinking(twin)
            cuts[twin] = _Cut(first + chain, depth, prefix, kept)
