"""Why H_init is worth what it is: the same table with one thing varied at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from glimprouter.evaluation import formats
from glimprouter.evaluation.agreement import agreement_of, hard_steps, read_steps
from glimprouter.evaluation.arms import ArmResults, arms_of
from glimprouter.evaluation.document import Block, Heading, Paragraph, Table
from glimprouter.evaluation.labels import small_steps, wrong_steps
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.sections_arms import compare
from glimprouter.evaluation.sections_signals import aurocs_of
from glimprouter.evaluation.statistics import PairedTest

if TYPE_CHECKING:
    from jobs import Job

WANTED = 0.25
COLUMNS = (
    "varied",
    "problems x runs",
    "small, large alone, %",
    "H_init, % right",
    "large tokens, %",
    "minus Random",
    "p, adjusted",
    "minus H_step",
    "wrong steps, %",
    "AUROC of H_init",
    "of H_step",
    "H_init, median",
    "first tokens agree, %",
    "hard steps",
    "first tokens agree in these, %",
    "later tokens, %",
)


def found(arms: Sequence[ArmResults], kind: str, wanted: float | None) -> ArmResults | None:
    """An arm by what it is; None if it was not run."""
    return next((a for a in arms if a.kind == kind and a.arm.wanted == wanted), None)


def causes(
    jobs: Sequence[Job],
    records: Mapping[str, Records],
    arms: Mapping[str, Sequence[ArmResults]],
) -> Iterator[Block]:
    """A table a task."""
    yield Heading("What H_init is worth, with one thing varied at a time")
    yield Paragraph(
        f"At {100 * WANTED:g} % of the steps wanted from the large model; intervals are 95 %, over"
        " problems, and differences paired by problem and seed. p: of the difference to Random,"
        " adjusted for all rows of these tables (Benjamini and Hochberg). The second row is the"
        " pair of the first on the problems and the seed that all below it have. AUROC: of the"
        " small model's own steps, the wrong ones. Agreement: of both models' likeliest tokens, on"
        " the large model's chains. Hard steps are those of them above the threshold, of how many."
    )
    shown: list[tuple[Job, Sequence[ArmResults]]] = []
    for family in dict.fromkeys(job.family for job in jobs):
        own = [job for job in jobs if job.family == family and not job.dear]
        own.sort(key=lambda job: (not job.whole, job.varies))
        for job in own:
            shown.append((job, arms[job.name]))
            others = [arms[each.name] for each in own if not each.whole]
            if job.whole and others and others[0]:
                keys = list(others[0][0].runs)
                shown.append((job, _some(records[job.name], keys)))
    p_values = _adjusted([minus(each, "random") for _, each in shown])
    for family in dict.fromkeys(job.family for job, _ in shown):
        yield Heading(family, 3)
        rows = [
            _row(job, records[job.name], each, p)
            for (job, each), p in zip(shown, p_values, strict=True)
            if job.family == family
        ]
        yield Table(list(COLUMNS), rows, "", frozenset({0}))


def minus(arms: Sequence[ArmResults], other: str) -> PairedTest | None:
    """H_init against another rule at the same wanted share; None where one was not run."""
    entropy, rival = found(arms, "entropy", WANTED), found(arms, other, WANTED)
    return None if entropy is None or rival is None else compare(entropy, rival)


def _adjusted(tests: Sequence[PairedTest | None]) -> list[float]:
    """Of each, adjusted for all; NaN where there is none."""
    known = [test.p_value for test in tests if test is not None]
    adjusted = iter(stats.false_discovery_control(known, method="bh") if known else ())
    return [math.nan if test is None else float(next(adjusted)) for test in tests]


def _some(records: Records, keys: Sequence[str]) -> list[ArmResults]:
    """What the arms did on some of the problems, with the first seed."""
    every = arms_of(records, keys=keys)[0]
    return [
        dataclasses.replace(
            arm, seeds=arm.seeds[:1], runs={key: runs[:1] for key, runs in arm.runs.items()}
        )
        for arm in every
    ]


def _row(job: Job, records: Records, arms: Sequence[ArmResults], p_value: float) -> list[str]:
    entropy = found(arms, "entropy", WANTED)
    alone = [found(arms, name, None) for name in ("small-alone", "large-alone")]
    if entropy is None:
        return [job.varies, *[""] * (len(COLUMNS) - 1)]
    row = [job.varies, f"{len(entropy.runs)} x {len(entropy.seeds)}"]
    row.append(", ".join("" if a is None else formats.percent(a.accuracy.estimate) for a in alone))
    row += [formats.percent_interval(entropy.accuracy), formats.percent(entropy.token_share)]
    random, step = (minus(arms, rival) for rival in ("random", "step-entropy"))
    row.append("" if random is None else formats.points_interval(random.difference))
    row.append("" if math.isnan(p_value) else formats.p_value(p_value))
    row.append("" if step is None else formats.points_interval(step.difference))
    return row + _signals(records, set(entropy.runs), set(entropy.seeds))


def _signals(records: Records, problems: set[str], seeds: set[int]) -> list[str]:
    """Of the small model's own chains, and of the large one's, on these problems."""
    own = dataclasses.replace(
        records,
        steps={u: s for u, s in records.steps.items() if u.problem in problems and u.seed in seeds},
    )
    scores = aurocs_of(wrong_steps(own))[1]
    wrong = scores.positives / scores.observations if scores.observations else math.nan
    row = [formats.percent(wrong)]
    for name in ("H_init", "H_step"):
        row.append(formats.interval(scores.aurocs[name]) if name in scores.aurocs else "")
    entropies = [step.entropy for step in small_steps(own) if step.entropy is not None]
    row.append(f"{np.median(entropies):.3f}" if entropies else "")
    every, hard = agreement_of(read_steps(own)), agreement_of(hard_steps(own, WANTED) or [])
    row += [formats.percent(every.first.estimate), f"{hard.steps} of {every.steps}"]
    return row + [formats.percent(each.estimate) for each in (hard.first, hard.later)]
