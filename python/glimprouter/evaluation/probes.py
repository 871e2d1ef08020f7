"""What routing needs to know of a step: does the small model fail where the large one does not?

Both go on from the start of the step, in forks of the same run, each to its end; in a third fork
the large model writes this one step and the small one all others.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from glimprouter.evaluation.plan import Arm, Plan
from glimprouter.evaluation.recording import BySubstream, signals_of
from glimprouter.evaluation.records import ProbedRecord, ProbeRecord, Unit
from glimprouter.evaluation.reread import read_again, why_not_reread
from glimprouter.evaluation.rules import SMALL_ALONE
from glimprouter.evaluation.solving import (
    Bench,
    begun,
    chunks_of,
    following,
    problem_seed,
)
from glimprouter.tasks import Problem

if TYPE_CHECKING:
    from glimprouter.hf import Event, Result, Run

__all__ = ["probe", "rows_needed"]

# Who writes from a step on: both names, or the large model this step and the small one the rest.
WRITERS = ("large", "once", "small")


def rows_needed(plan: Plan) -> int:
    """Sequences that a probed problem has in flight at most: its chain and all forks."""
    return 1 + len(WRITERS) * plan.probe_steps * plan.probe_draws


def probe(bench: Bench, plan: Plan, problems: Sequence[Problem], seed: int) -> None:
    """Forks the small model's chains of these problems at steps drawn at random.

    The chains are those of the arm ``small-alone`` of the same seed, whose records say how many
    steps there are.

    Args:
        bench: Pair, task and records.
        plan: Sizes.
        problems: Of the report split, solved by ``small-alone``; a multiple of the batch, or all.
        seed: Of the chains and of the draw.

    Raises:
        ValueError: The pair has too few rows for one problem.
    """
    size = bench.model.max_sequences // rows_needed(plan)
    if size < 1:
        raise ValueError(
            f"max_sequences={bench.model.max_sequences} is too few for {plan.probe_steps} probed"
            f" steps of a problem with {plan.probe_draws} draws; it takes {rows_needed(plan)}"
        )
    for chunk in chunks_of(problems, plan.batch):
        done = [p for p in chunk if (seed, p.key) in bench.file.records.probed]
        bench.advance(len(done))
        left = [p for p in chunk if p not in done]
        for group in chunks_of(left, size):
            _Probing(bench, plan, chunk, group, seed).run()


class _Fork(NamedTuple):
    """One continuation: of which chain, from which step."""

    chain: int
    step: int
    draw: int
    writer: str  # one of WRITERS
    key: tuple[int, int]  # seed and random key


class _Probing:
    """A run over some chains of a batch, with their forks."""

    def __init__(
        self,
        bench: Bench,
        plan: Plan,
        chunk: Sequence[Problem],
        group: Sequence[Problem],
        seed: int,
    ) -> None:
        self._bench, self._plan, self._chunk, self._seed = bench, plan, chunk, seed
        self._chains = [place for place, problem in enumerate(chunk) if problem in group]
        self._counts = {chain: self._steps_of(chunk[chain]) for chain in self._chains}
        self._left = {chain: self._drawn(chain) for chain in self._chains}
        self._asked = {chain: len(steps) for chain, steps in self._left.items()}
        self._next = dict.fromkeys(self._chains, 0)
        self._running = set(self._chains)
        self._forks: dict[int, _Fork] = {}
        self._results: dict[_Fork, Result] = {}
        self._policy = BySubstream()

    def _steps_of(self, problem: Problem) -> int:
        unit = Unit("report", Arm(SMALL_ALONE).label, self._seed, self._plan.batch, problem.key)
        return len(self._bench.file.records.steps.get(unit, []))

    def _drawn(self, chain: int) -> list[int]:
        """The steps to be forked, ascending."""
        key = problem_seed(self._seed, self._chunk[chain])
        count = min(self._plan.probe_steps, self._counts[chain])
        generator = np.random.default_rng((1, key))
        return sorted(generator.choice(self._counts[chain], count, replace=False).tolist())

    def run(self) -> None:
        for chain in [c for c in self._chains if not self._left[c]]:  # a chain without steps
            self._end(chain)
        others = {p.key for at, p in enumerate(self._chunk) if at not in self._running}
        with following(self._bench.model, self._policy):
            run = begun(self._bench.model, self._chunk, self._seed, others, {})
            for event in run:
                if event.sequence in self._running:
                    self._follow(run, event)
                elif event.sequence in self._forks and event.result is not None:
                    fork = self._forks.pop(event.sequence)
                    self._results[fork] = event.result
                    self._end_if_done(fork.chain)

    def _follow(self, run: Run, event: Event) -> None:
        """An event of a chain itself."""
        chain = event.sequence
        if event.step is not None:
            self._next[chain] = event.step.index + 1
        if event.result is not None:  # it has fewer steps than it had: rounding turned a token
            self._running.remove(chain)
            self._end_if_done(chain)
        if event.kind == "route" and self._next[chain] in self._left[chain]:
            self._left[chain].remove(self._next[chain])
            self._fork(run, chain, self._next[chain])
            if not self._left[chain]:
                self._running.remove(chain)
                run.cancel(chain)

    def _fork(self, run: Run, chain: int, step: int) -> None:
        """All continuations from the start of a step."""
        seed = problem_seed(self._seed, self._chunk[chain])
        start = self._policy.glimpses[seed, chain][step].position
        for draw in range(self._plan.probe_draws):
            for writer in WRITERS:
                fork = _Fork(chain, step, draw, writer, (seed, _random_key(step, draw, writer)))
                ends = {"large": sys.maxsize, "once": step + 1, "small": step}
                self._policy.give(fork.key, range(step, ends[writer]))
                copy = run.fork(chain, substream=fork.key[1])
                run.rewind(copy, len(run.generated(copy)) - start, exact=False)
                self._forks[copy] = fork

    def _end_if_done(self, chain: int) -> None:
        if chain in self._running or any(f.chain == chain for f in self._forks.values()):
            return
        self._end(chain)

    def _end(self, chain: int) -> None:
        """Writes down what came of a chain's forks."""
        own = sorted((fork for fork in self._results if fork.chain == chain), key=_place)
        forks = zip(own[0::3], own[1::3], own[2::3], strict=True)  # in the order of WRITERS
        records = [self._record(large, once, small) for large, once, small in forks]
        problem = self._chunk[chain]
        reached = len({fork.step for fork in own})
        closing = ProbedRecord(
            self._seed, problem.key, self._counts[chain], self._asked[chain], reached
        )
        self._bench.file.append([*records, closing])
        self._bench.advance(1)
        self._running.discard(chain)
        for fork in own:
            del self._results[fork]

    def _record(self, large: _Fork, once: _Fork, small: _Fork) -> ProbeRecord:
        problem, task = self._chunk[small.chain], self._bench.task
        results = [self._results[fork] for fork in (small, large, once)]
        steps = results[0].trace.steps
        text, entropy, perplexity = "", None, None
        if small.step < len(steps):
            text = steps[small.step].text
            if why_not_reread(self._bench.model) is None:
                read = read_again(self._bench.model, problem.prompt, results[0], both=False)
                if (own := read[small.step]) is not None:
                    entropy, perplexity = own.entropy, own.perplexity
        right = [r.trace.error is None and task.is_correct(problem, r.answer) for r in results]
        return ProbeRecord(
            seed=self._seed,
            problem=problem.key,
            step=small.step,
            draw=small.draw,
            **signals_of(self._policy.glimpses[small.key][small.step]),
            text=text,
            small_correct=right[0],
            large_correct=right[1],
            once_correct=right[2],
            step_entropy=entropy,
            step_perplexity=perplexity,
        )


def _place(fork: _Fork) -> tuple[int, int, str]:
    return fork.step, fork.draw, fork.writer


def _random_key(step: int, draw: int, writer: str) -> int:
    """Random key of a fork, unlike those of chains, which are small numbers."""
    digest = hashlib.sha256(f"{step}/{draw}/{writer}".encode()).digest()
    return int.from_bytes(digest[:8], "little")
