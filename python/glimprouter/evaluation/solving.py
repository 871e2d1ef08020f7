"""One arm over some problems: runs what has not been recorded, and records it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from glimprouter.calibration.pairs import AnyPair, ended, on_engines
from glimprouter.chains import CandidateRule, write_with_candidates
from glimprouter.evaluation.chain_systems import ChainSystem
from glimprouter.evaluation.outcomes import Outcome, candidate_outcome, entropies_of, records_of
from glimprouter.evaluation.plan import Arm
from glimprouter.evaluation.record_file import RecordFile
from glimprouter.evaluation.recording import Draft, Recording, RecordingSteps, recording
from glimprouter.evaluation.records import StepRecord, Unit
from glimprouter.evaluation.reread import read_again, why_not_reread
from glimprouter.evaluation.rules import LARGE_ALONE, SMALL_ALONE, Decider, rule_of
from glimprouter.evaluation.settings import config_of, drafts_of
from glimprouter.policies import Glimpse, Policy
from glimprouter.tasks import Problem, Split, Task

if TYPE_CHECKING:
    from glimprouter.hf import Event, Result, Run
    from glimprouter.vllm import EngineRun

__all__ = [
    "Bench",
    "Solver",
    "Solving",
    "begun",
    "chunks_of",
    "following",
    "problem_seed",
]

Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """What all runs of an evaluation share.

    Attributes:
        model: The pair.
        task: The task.
        file: Where records go.
        advance: Told of each finished problem, or of several that were found finished.
        by_prompt: The problems of both splits.
        scorers: What rules are given besides their parameters, by their names.
        systems: Those around the chain, by the labels of their arms: each is prepared once.
    """

    model: AnyPair
    task: Task
    file: RecordFile
    advance: Advance
    by_prompt: Mapping[str, Problem] = dataclasses.field(default_factory=dict)
    scorers: dict[str, Any] = dataclasses.field(default_factory=dict)
    systems: dict[str, ChainSystem] = dataclasses.field(default_factory=dict)

    def policy_of(self, arm: Arm) -> Decider:
        """The policy of an arm, its rule that chooses among drafts, or its system.

        Raises:
            ValueError: It refuses its parameters.
        """
        rule = rule_of(arm.rule)
        if arm.label not in self.systems:
            made = rule.build(arm.parameters, self.scorers.get(rule.given or ""))
            if not isinstance(made, ChainSystem):
                return made
            self.systems[arm.label] = made
        return self.systems[arm.label]


class Solving(NamedTuple):
    """What is to be solved, and how.

    Attributes:
        arm: By whom.
        split: Of the problems.
        seed: Of the random numbers.
        batch: In flight at most.
    """

    arm: Arm
    split: Split
    seed: int
    batch: int

    def unit(self, problem: Problem) -> Unit:
        """The unit of a problem."""
        return Unit(self.split, self.arm.label, self.seed, self.batch, problem.key)

    @property
    def overrides(self) -> dict[str, Any]:
        """Options of the run; a model alone writes the answer, too."""
        own = config_of(self.arm.parameters)
        if self.arm.rule == LARGE_ALONE:
            return {"route": "large", "answer_model": "large", **own}
        return {"answer_model": "small", **own} if self.arm.rule == SMALL_ALONE else own


class Solver:
    """Solves the problems of a :class:`Solving` that have no record yet, a batch at a time.

    Random numbers follow from the seed, the problem and its place in its batch, so that a resumed
    run draws what an uninterrupted one would have drawn.

    Attributes:
        batches: How many there are.
    """

    def __init__(self, bench: Bench, solving: Solving, problems: Sequence[Problem]) -> None:
        """Nothing is solved yet.

        Raises:
            ValueError: The policy of the arm refuses its parameters.
        """
        self._bench, self._solving = bench, solving
        self._chunks = list(chunks_of(problems, solving.batch))
        self._own = bench.policy_of(solving.arm)
        self.batches = len(self._chunks)

    def solve(self) -> None:
        """All batches, one after another."""
        for batch in range(self.batches):
            self.solve_batch(batch)

    def solve_batch(self, batch: int) -> None:
        """One batch; what is recorded already is not run again, or not recorded again.

        Systems and rules that choose among drafts run all of a batch, for the same draws.

        Raises:
            RuntimeError: The models gave invalid logits, or an engine stayed away.
        """
        chunk, bench = self._chunks[batch], self._bench
        recorded = bench.file.records.problems
        done = {p.key for p in chunk if self._solving.unit(p) in recorded}
        bench.advance(len(done))
        own = self._own
        if isinstance(own, CandidateRule | ChainSystem):
            parts = [chunk]
            if isinstance(own, ChainSystem) and own.one_at_a_time:
                parts = [[problem] for problem in chunk]
            for part in parts:
                if any(problem.key not in done for problem in part):
                    self._solve_part(own, part, done)
            return
        glimpses = self._solving.arm.rule != LARGE_ALONE
        if glimpses:
            self._remember(own, [p for p in chunk if p.key in done])
        if len(done) == len(chunk):
            return
        seen = recording(own) if glimpses and not on_engines(bench.model) else None
        policy = (seen or own) if glimpses else None
        with following(bench.model, policy, drafts_of(self._solving.arm.parameters)):
            run = begun(bench.model, chunk, self._solving.seed, done, self._solving.overrides)
            writing = _Writing(bench, self._solving, chunk, seen)
            try:
                with ended(run):
                    for event in run:
                        if chunk[event.sequence].key not in done:
                            _check_there(run, event)
                            writing.take(event)
            except RuntimeError as error:
                raise RuntimeError(f"{self._solving.arm.label}: {error}") from error

    def _solve_part(
        self, own: CandidateRule | ChainSystem, part: Sequence[Problem], done: set[str]
    ) -> None:
        """What runs without a policy; all of it, for the same draws, whatever is recorded."""
        solving = self._solving
        model: Any = self._bench.model  # a RoutedModel: on engines such an arm is refused
        prompts = [problem.prompt for problem in part]
        seeds = [problem_seed(solving.seed, problem) for problem in part]

        def record(place: int, outcome: Outcome) -> None:
            if part[place].key not in done:
                self._record(part[place], outcome)

        with following(model, None, drafts_of(solving.arm.parameters)):
            try:
                if isinstance(own, ChainSystem):
                    own.solve(model, part, seeds, record)
                    return
                write_with_candidates(
                    model,
                    prompts,
                    own,
                    seeds,
                    finished=lambda place, one: record(place, candidate_outcome(own, one)),
                    **solving.overrides,
                )
            except RuntimeError as error:
                raise RuntimeError(f"{solving.arm.label}: {error}") from error

    def _record(self, problem: Problem, outcome: Outcome) -> None:
        """Writes down a problem."""
        unit = self._solving.unit(problem)
        steps, closing = records_of(self._bench.task, problem, unit, outcome)
        self._bench.file.append([*steps, closing])
        self._bench.advance(1)

    def _remember(self, policy: Policy, problems: Sequence[Problem]) -> None:
        """Shows a policy that learns as it goes what it has seen in an earlier session."""
        for problem in problems:
            for step in self._bench.file.records.steps.get(self._solving.unit(problem), []):
                if step.entropy is not None:
                    policy.before(_glimpse(step))


def _check_there(run: Run | EngineRun, event: Event) -> None:
    """A problem that an engine has failed is not solved wrong: it is not solved yet.

    One that stayed away, or a gate that is not at the place where the router is.
    """
    if event.result is None:
        return
    failed = {*getattr(run, "saved", {}), *getattr(run, "disagreed", ())}
    if event.sequence in failed:
        raise RuntimeError(f"{event.result.trace.error}; nothing that is recorded is lost")


@contextmanager
def following(model: AnyPair, policy: Policy | None, drafts: int | None = None) -> Iterator[None]:
    """Lets a pair follow a policy for a while, and draft otherwise where ``drafts`` says so."""
    policy_before = model.policy
    model.policy = policy
    try:
        with _drafting(model, drafts):
            yield
    finally:
        model.policy = policy_before


@contextmanager
def _drafting(model: Any, drafts: int | None) -> Iterator[None]:
    if drafts is None:
        yield
        return
    from glimprouter.hf.run.drafting import drafting_of  # needs torch

    before = model.drafting
    model.drafting = drafting_of(drafts, possible=model.takes_drafts)
    try:
        yield
    finally:
        model.drafting = before


def chunks_of(problems: Sequence[Problem], size: int) -> Iterator[Sequence[Problem]]:
    """The problems that are in flight together."""
    for start in range(0, len(problems), size):
        yield problems[start : start + size]


def problem_seed(seed: int, problem: Problem) -> int:
    """Seed of a problem's random numbers, in [0, 2^64)."""
    digest = hashlib.sha256(f"{seed}/{problem.key}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def begun(
    model: AnyPair,
    chunk: Sequence[Problem],
    seed: int,
    without: set[str],
    overrides: dict[str, Any],
) -> Run | EngineRun:
    """A run over a batch, from which those that need not run have been taken out."""
    seeds = [problem_seed(seed, problem) for problem in chunk]
    run = model.stream([problem.prompt for problem in chunk], seeds=seeds, **overrides)
    for index, problem in enumerate(chunk):
        if problem.key in without:
            run.cancel(index)
    return run


class _Writing:
    """Makes records of the events of a run."""

    def __init__(
        self, bench: Bench, solving: Solving, chunk: Sequence[Problem], policy: Recording | None
    ) -> None:
        self._bench, self._solving, self._chunk, self._policy = bench, solving, chunk, policy
        self._large_tokens = [0] * len(chunk)
        self._tokens = [0] * len(chunk)

    def take(self, event: Event) -> None:
        if event.token_id is not None:
            self._tokens[event.sequence] += 1
            self._large_tokens[event.sequence] += event.model == "large"
        if event.result is not None:
            self._write(event.sequence, event.result)
            self._bench.advance(1)

    def _write(self, sequence: int, result: Result) -> None:
        key = (result.trace.seed, result.trace.substream)
        glimpses = entropies_of(result.trace)
        if self._policy is not None:
            glimpses = self._policy.glimpses.pop(key, {})
        drafts: dict[int, Draft] = {}
        if isinstance(self._policy, RecordingSteps):
            drafts = self._policy.drafts.pop(key, {})
        large = self._large_tokens[sequence]
        written = {"small": self._tokens[sequence] - large, "large": large}
        problem = self._chunk[sequence]
        outcome = Outcome(result, written, glimpses, drafts)
        unit = self._solving.unit(problem)
        steps, record = records_of(self._bench.task, problem, unit, outcome)
        self._bench.file.append([*self._read_again(problem, result, steps), record])

    def _read_again(
        self, problem: Problem, result: Result, steps: list[StepRecord]
    ) -> list[StepRecord]:
        """Chains of the models alone, with what the models say of every token."""
        rule, model = self._solving.arm.rule, self._bench.model
        alone = rule in (SMALL_ALONE, LARGE_ALONE) and self._solving.split == "report"
        alone = alone and not self._solving.arm.parameters
        if not alone or not steps or why_not_reread(model) is not None:
            return steps
        read = read_again(model, problem.prompt, result, both=rule == LARGE_ALONE)
        return [
            step
            if one is None
            else dataclasses.replace(
                step,
                entropy=one.first_entropy if rule == LARGE_ALONE else step.entropy,
                step_entropy=one.entropy,
                step_perplexity=one.perplexity,
                agrees=one.agrees,
            )
            for step, one in zip(steps, read, strict=True)
        ]


def _glimpse(step: StepRecord) -> Glimpse:
    values = {name: getattr(step, name) for name in ("entropy", "max_prob", "margin", "varentropy")}
    known = {name: value for name, value in values.items() if value is not None}
    return Glimpse(0, 0, step.index, 0, None, **known)
