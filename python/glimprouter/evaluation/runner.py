"""The run of an evaluation, in stages: thresholds, report problems, probes, other batch sizes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from glimprouter.calibration.fingerprint import pair_fingerprint
from glimprouter.calibration.pairs import AnyPair, on_engines
from glimprouter.chains import CandidateRule, write_with_candidates
from glimprouter.evaluation.chain_systems import ChainSystem
from glimprouter.evaluation.development import arm_for_share
from glimprouter.evaluation.on_engines import (
    check_plan,
    engine_versions,
    engines_identity,
    engines_plan,
)
from glimprouter.evaluation.plan import Arm, Plan, PolicySpec
from glimprouter.evaluation.probes import probe, rows_needed
from glimprouter.evaluation.record_file import RecordFile
from glimprouter.evaluation.records import ArmRecord
from glimprouter.evaluation.rules import LARGE_ALONE, SMALL_ALONE, rule_of
from glimprouter.evaluation.scorers import scorer_of
from glimprouter.evaluation.session import this_session
from glimprouter.evaluation.solving import Bench, Solver, Solving, following
from glimprouter.tasks import Problem, Task

__all__ = ["Progress", "evaluate"]

# Stage, problems done (0 at its start), problems of the stage.
Progress: TypeAlias = Callable[[str, int, int], None]


def evaluate(
    model: AnyPair,
    task: Task,
    directory: Path,
    plan: Plan | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """Runs what a plan asks for and is not recorded yet.

    Records are appended a problem at a time, so that after a kill the same call goes on, and at
    most the problems in flight are lost. Policies, shares, seeds and timing batches may grow from
    call to call; all else is the same for all records of a folder. Seconds depend on the machine;
    all else follows from the seeds, but for rounding.

    Args:
        model: The pair, with ``route="auto"`` and without a policy. One on engines runs the
            policies that gates can follow (:data:`.ENGINE_POLICIES`), and no probes.
        task: Where problems come from, and who checks them.
        directory: Folder of the records; made where it does not exist.
        plan: What to run (default: ``Plan()``, on engines what these can do of it).
        progress: Called with the stage, the problems done, and the problems of the stage.

    Returns:
        The file of records.

    Raises:
        TypeError: An argument of another type.
        ValueError: A pair that cannot do this, splits that overlap, or a folder of another pair,
            task or settings.
        RuntimeError: Another process writes there, a model gave invalid logits, or an engine
            stayed away: what it had in hand is not recorded, and the same call goes on.
        OSError: The folder cannot be written.
    """
    plan = plan or (engines_plan() if on_engines(model) else Plan())
    _check(model, task, plan)
    report = task.problems(plan.problems, "report", plan.task_seed)
    development = task.problems(plan.development_problems, "development", plan.task_seed)
    _check_disjoint(task, report, development)
    identity = _identity(model, task, plan, [*report, *development])
    with RecordFile(directory, identity) as file:
        session = this_session()
        if on_engines(model):
            session.machine["engines"] = engine_versions(model)
        file.append([session])
        model.generate([report[0].prompt])  # the first passes allocate, and choose kernels
        _Stages(model, task, plan, file, progress or (lambda stage, done, total: None)).run(
            report, development
        )
        return file.records.path


class _Stages:
    """The stages of a run, each with its own count of problems."""

    def __init__(
        self,
        model: AnyPair,
        task: Task,
        plan: Plan,
        file: RecordFile,
        progress: Progress,
    ) -> None:
        self._plan, self._file, self._progress = plan, file, progress
        self._stage, self._done, self._total = "", 0, 0
        self._bench = Bench(model, task, file, self._advance)

    def run(self, report: Sequence[Problem], development: Sequence[Problem]) -> None:
        """All of them."""
        by_prompt = {problem.prompt: problem for problem in (*report, *development)}
        self._bench = dataclasses.replace(self._bench, by_prompt=by_prompt)
        for name in {rule_of(spec.rule).given for spec in self._plan.specs} - {None}:
            assert name is not None
            made = scorer_of(name, self._bench, development, self._plan.batch)
            self._bench.scorers[name] = made
        arms = [Arm(SMALL_ALONE), Arm(LARGE_ALONE), *self._arms(development)]
        labels = {arm.label: arm for arm in arms}  # two shares may have led to one threshold
        self._prepare(labels.values())
        drawn = {label: arm for label, arm in labels.items() if not self._is_greedy(arm)}
        by_seed = [labels, *[drawn] * (self._plan.seeds - 1)]
        self._begin("report", sum(map(len, by_seed)) * len(report))
        for seed, own in enumerate(by_seed):
            self._in_turns(own.values(), seed, self._plan.batch, report)
        if probed := report[: self._plan.probe_problems]:
            self._begin("probes", len(probed))
            probe(self._bench, self._plan, probed, 0)
        sizes = [size for size in self._plan.timing_batches if size != self._plan.batch]
        timed = report[: self._plan.timing_problems]
        for size in sizes:
            self._begin(f"batch {size}", len(labels) * len(timed))
            self._in_turns(labels.values(), 0, size, timed)

    def _prepare(self, arms: Iterable[Arm]) -> None:
        """Fits the systems around the chain, and finds out now what their problems do not tell."""
        made = {arm.label: self._bench.policy_of(arm) for arm in arms}
        systems = {k: system for k, system in made.items() if isinstance(system, ChainSystem)}
        if systems:
            self._begin("systems", len(systems))
        for label, system in systems.items():
            try:
                system.prepare(self._bench.task)
            except ValueError as error:
                raise ValueError(f"policy {label}: {error}") from error
            self._advance(1)

    def _is_greedy(self, arm: Arm) -> bool:
        """Whether an arm does the same whatever the seed."""
        own = self._bench.policy_of(arm)
        return isinstance(own, ChainSystem) and own.greedy

    def _in_turns(
        self, arms: Iterable[Arm], seed: int, batch: int, problems: Sequence[Problem]
    ) -> None:
        """A batch of each arm, then the next: a slow spell of the machine falls on all alike."""
        solvings = [Solving(arm, "report", seed, batch) for arm in arms]
        solvers = [Solver(self._bench, solving, problems) for solving in solvings]
        for place in range(max(solver.batches for solver in solvers)):
            for solver in solvers:
                solver.solve_batch(place)

    def _arms(self, problems: Sequence[Problem]) -> list[Arm]:
        """The policies, with thresholds for the wanted shares."""
        plan = self._plan
        alone = [ArmRecord(rule, {}, None) for rule in (SMALL_ALONE, LARGE_ALONE)]
        found: list[ArmRecord] = []
        shared = [spec for spec in plan.specs if spec.takes_share]
        chosen = [s for s in shared if rule_of(s.rule).set_by == "threshold"]
        runs = len(chosen) * len(plan.shares)
        if runs:  # the unrouted run is looked at once for each
            self._begin("development", runs * (1 + plan.rounds) * len(problems))
        for spec in plan.specs:
            if not spec.takes_share:
                found.append(ArmRecord(spec.rule, dict(spec.parameters), None))
                continue
            for wanted in plan.shares:
                found.append(
                    arm_for_share(
                        self._bench, spec, wanted, problems, batch=plan.batch, rounds=plan.rounds
                    )
                )
        for record in (*alone, *found):
            if record not in self._file.records.arms:
                self._file.append([record])
        return [Arm(record.rule, record.parameters, record.wanted) for record in found]

    def _begin(self, stage: str, total: int) -> None:
        self._stage, self._done, self._total = stage, 0, total
        self._progress(stage, 0, total)

    def _advance(self, count: int) -> None:
        if count:
            self._done += count
            self._progress(self._stage, self._done, self._total)


def _check(model: AnyPair, task: Task, plan: Plan) -> None:
    if not isinstance(task, Task):
        raise TypeError(
            "task must be an object of a class derived from glimprouter.tasks.Task, got"
            f" {type(task).__name__}"
        )
    if model.policy is not None:
        raise ValueError(
            f"the pair has the policy {model.policy.name}; an evaluation sets its own: give a"
            " RoutedModel without one"
        )
    if model.config.route != "auto":
        raise ValueError(
            f'the pair\'s route is "{model.config.route}", so policies are not asked; an evaluation'
            ' needs route="auto"'
        )
    if model.config.first_steps_large or model.config.large_tokens is not None:
        raise ValueError(
            "the pair's first_steps_large must be 0 and its large_tokens None in an evaluation:"
            " what a policy decides about a step would be another thing than who writes it"
        )
    if on_engines(model):
        check_plan(plan)
        model.check()
    needed = rows_needed(plan) if plan.probe_problems else 1
    largest = max(needed, plan.rows)
    if model.max_sequences < largest:
        raise ValueError(
            f"the pair has max_sequences={model.max_sequences}, and this plan needs {largest} (its"
            " batches, with all drafts of a step of each problem, and the forks of a probed one)"
        )
    for spec in () if on_engines(model) else plan.specs:
        _try(model, spec)


def _try(model: Any, spec: PolicySpec) -> None:
    """Finds out now, not behind other policies, that a pair cannot follow a policy.

    Raises:
        ValueError: It cannot.
    """
    policy = rule_of(spec.rule).build(spec.example)
    try:
        if isinstance(policy, ChainSystem):
            policy.check(model)
        elif isinstance(policy, CandidateRule):
            write_with_candidates(model, [], policy)
        elif policy.aside is not None:
            with following(model, policy):
                model.stream([])
    except ValueError as error:
        raise ValueError(f"policy {spec.rule}: {error}") from error


def _check_disjoint(task: Task, report: Sequence[Problem], development: Sequence[Problem]) -> None:
    for split, problems in (("report", report), ("development", development)):
        keys = [problem.key for problem in problems]
        if len(set(keys)) < len(keys):
            raise ValueError(f"task {task.name}: two {split} problems have the same key")
    both = {problem.prompt for problem in report} & {problem.prompt for problem in development}
    if both:
        raise ValueError(
            f"task {task.name}: {len(both)} problems are in both splits, such as"
            f" {min(both)!r}; thresholds chosen on report problems would flatter the report"
        )


def _identity(
    model: AnyPair, task: Task, plan: Plan, problems: Sequence[Problem]
) -> dict[str, Any]:
    """What all records of a folder have in common."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.key, problem.prompt, problem.answer]).encode())
    config = dataclasses.asdict(model.config)
    for unused in ("threshold", "comparison", "route"):  # policies have their own
        del config[unused]
    own = engines_identity(model) if on_engines(model) else _own_identity(model)
    return {
        "pair": pair_fingerprint(model),
        "task": task.name,
        "checks_steps": bool(task.checks_steps),
        "problems_digest": digest.hexdigest(),
        "plan": plan.settings(),
        "config": config,
        **own,
    }


def _own_identity(model: Any) -> dict[str, Any]:
    """Of a pair in this process."""
    drafting = model.drafting
    drafts: int | str = 0
    if drafting is not None:
        drafts = "auto" if drafting.measures else drafting.most
    models = {"small": model.small, "large": model.large}
    return {
        "weights": {name: _weights(each) for name, each in models.items()},
        "dtypes": {name: str(each.dtype).removeprefix("torch.") for name, each in models.items()},
        "one_vocabulary": model.translation is None,
        "engine": model.engine,
        "execution": model.execution,
        "device": model.device,
        "drafts": drafts,
    }


def _weights(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())
