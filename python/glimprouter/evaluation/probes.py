"""What routing needs to know of a step: does the small model fail where the large one does not?

Both go on from the start of the step, in forks of its chain, each to its end; in a third fork the
large model writes this one step and the small one all others. The three draw the same random
numbers, so that where they differ, it is by what was written.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

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
    """Sequences that a probed problem has in flight at most: its chain and its forks."""
    return 1 + plan.probe_steps * plan.probe_draws


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
    key: tuple[int, int]  # seed and random key, the same for all writers


class _Probing:
    """Some chains of a batch, with their forks, once for each writer."""

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
        self._steps = {chain: self._drawn(chain) for chain in self._chains}

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
        """All writers; each chain is written down when the last one is done with it."""
        *others, last = WRITERS
        done = {writer: self._continued(writer) for writer in others}
        left = set(self._chains)

        def write(forks: _Forks, chain: int) -> None:
            self._write({**done, last: forks}, chain)
            left.remove(chain)

        forks = self._continued(last, write)
        for chain in sorted(left):  # nothing was forked of it, or it ended behind its forks
            write(forks, chain)

    def _write(self, done: Mapping[str, _Forks], chain: int) -> None:
        """Writes down a chain: of its forks those that all writers came to."""
        common = set.intersection(*(set(forks.results) for forks in done.values()))
        own = sorted(fork for fork in common if fork.chain == chain)
        records = [self._record(fork, done) for fork in own]
        reached = len({fork.step for fork in own})
        key, asked = self._chunk[chain].key, len(self._steps[chain])
        closing = ProbedRecord(self._seed, key, self._counts[chain], asked, reached)
        self._bench.file.append([*records, closing])
        self._bench.advance(1)

    def _continued(self, writer: str, ended: Callable[[_Forks, int], None] | None = None) -> _Forks:
        """All forks, whose steps a writer of WRITERS goes on to write.

        Args:
            writer: Who does.
            ended: Told of each chain whose last fork has ended.
        """
        forks = _Forks(self._plan.probe_draws, writer, self._steps)
        others = {p.key for at, p in enumerate(self._chunk) if at not in forks.running}
        with following(self._bench.model, forks.policy):
            run = cast("Run", begun(self._bench.model, self._chunk, self._seed, others, {}))
            for event in run:
                chain = forks.take(run, event)
                if chain is not None and ended is not None:
                    ended(forks, chain)
        return forks

    def _record(self, fork: _Fork, done: Mapping[str, _Forks]) -> ProbeRecord:
        problem, task = self._chunk[fork.chain], self._bench.task
        results = {writer: forks.results[fork] for writer, forks in done.items()}
        steps = results["small"].trace.steps
        text, entropy, perplexity = "", None, None
        if fork.step < len(steps):
            text = steps[fork.step].text
            if why_not_reread(self._bench.model) is None:
                read = read_again(self._bench.model, problem.prompt, results["small"], both=False)
                if (own := read[fork.step]) is not None:
                    entropy, perplexity = own.entropy, own.perplexity
        right = {
            writer: result.trace.error is None and task.is_correct(problem, result.answer)
            for writer, result in results.items()
        }
        return ProbeRecord(
            seed=self._seed,
            problem=problem.key,
            step=fork.step,
            draw=fork.draw,
            **signals_of(done["small"].policy.glimpses[fork.key][fork.step]),
            text=text,
            small_correct=right["small"],
            large_correct=right["large"],
            once_correct=right["once"],
            step_entropy=entropy,
            step_perplexity=perplexity,
        )


class _Forks:
    """The forks of some chains in one run.

    Attributes:
        policy: That the run follows.
        running: Chains of which steps are still to be forked.
        results: What came of the forks.
    """

    def __init__(self, draws: int, writer: str, steps: Mapping[int, Sequence[int]]) -> None:
        self.policy = BySubstream()
        self.running = {chain for chain, own in steps.items() if own}
        self.results: dict[_Fork, Result] = {}
        self._draws, self._writer = draws, writer
        self._left = {chain: list(own) for chain, own in steps.items()}
        self._next = dict.fromkeys(steps, 0)
        self._forks: dict[int, _Fork] = {}

    def take(self, run: Run, event: Event) -> int | None:
        """Follows an event of the run; tells of a chain whose last fork it ends."""
        if event.sequence in self.running:
            self._follow(run, event)
        elif event.sequence in self._forks and event.result is not None:
            fork = self._forks.pop(event.sequence)
            self.results[fork] = event.result
            going_on = any(other.chain == fork.chain for other in self._forks.values())
            if not going_on and fork.chain not in self.running:
                return fork.chain
        return None

    def _follow(self, run: Run, event: Event) -> None:
        """An event of a chain itself."""
        chain = event.sequence
        if event.step is not None:
            self._next[chain] = event.step.index + 1
        if event.result is not None:  # it has fewer steps than it had: rounding turned a token
            self.running.remove(chain)
        if event.kind == "route" and self._next[chain] in self._left[chain]:
            self._left[chain].remove(self._next[chain])
            self._fork(run, chain, self._next[chain])
            if not self._left[chain]:
                self.running.remove(chain)
                run.cancel(chain)

    def _fork(self, run: Run, chain: int, step: int) -> None:
        """All continuations from the start of a step."""
        trace = run.trace(chain)
        start = self.policy.glimpses[trace.seed, trace.substream][step].position
        ends = {"large": sys.maxsize, "once": step + 1, "small": step}
        for draw in range(self._draws):
            fork = _Fork(chain, step, draw, (trace.seed, _random_key(step, draw)))
            self.policy.give(fork.key, range(step, ends[self._writer]))
            copy = run.fork(chain, substream=fork.key[1])
            run.rewind(copy, len(run.generated(copy)) - start, exact=False)
            self._forks[copy] = fork


def _random_key(step: int, draw: int) -> int:
    """Random key of a fork, unlike those of chains, which are small numbers."""
    digest = hashlib.sha256(f"{step}/{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "little")
