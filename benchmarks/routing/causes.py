"""Why H_init is worth what it is: the same table with one thing varied at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from glimprouter.evaluation import formats
from glimprouter.evaluation.agreement import agreement_of, hard_steps, read_steps
from glimprouter.evaluation.arms import ArmResults, arms_of
from glimprouter.evaluation.document import Block, Heading, Paragraph, Table
from glimprouter.evaluation.labels import small_steps, wrong_steps
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.sections_arms import compare
from glimprouter.evaluation.sections_signals import aurocs_of

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
        " problems, and differences paired by problem and seed. The second row is the pair of the"
        " first on the problems and the seed that all below it have. AUROC: of the small model's"
        " own steps, the wrong ones. Agreement: of both models' likeliest tokens, on the large"
        " model's chains. Hard steps are those of them above the threshold, of how many."
    )
    for family in dict.fromkeys(job.family for job in jobs):
        own = [job for job in jobs if job.family == family and not job.dear]
        own.sort(key=lambda job: (not job.whole, job.varies))
        rows = []
        for job in own:
            rows.append(_row(job, records[job.name], arms[job.name]))
            others = [arms[each.name] for each in own if not each.whole]
            if job.whole and others and others[0]:
                keys = list(others[0][0].runs)
                rows.append(_row(job, records[job.name], _some(records[job.name], keys)))
        yield Heading(family, 3)
        yield Table(list(COLUMNS), rows, "", frozenset({0}))


def _some(records: Records, keys: Sequence[str]) -> list[ArmResults]:
    """What the arms did on some of the problems, with the first seed."""
    every = arms_of(records, keys=keys)[0]
    return [
        dataclasses.replace(
            arm, seeds=arm.seeds[:1], runs={key: runs[:1] for key, runs in arm.runs.items()}
        )
        for arm in every
    ]


def _row(job: Job, records: Records, arms: Sequence[ArmResults]) -> list[str]:
    entropy = found(arms, "entropy", WANTED)
    alone = [found(arms, name, None) for name in ("small-alone", "large-alone")]
    if entropy is None:
        return [job.varies, *[""] * (len(COLUMNS) - 1)]
    row = [job.varies, f"{len(entropy.runs)} x {len(entropy.seeds)}"]
    row.append(", ".join("" if a is None else formats.percent(a.accuracy.estimate) for a in alone))
    row += [formats.percent_interval(entropy.accuracy), formats.percent(entropy.token_share)]
    for other in (found(arms, "random", WANTED), found(arms, "step-entropy", WANTED)):
        row.append(
            "" if other is None else formats.points_interval(compare(entropy, other).difference)
        )
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
