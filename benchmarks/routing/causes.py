"""Why H_init is worth what it is: the same table with one thing varied at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from glimprouter.evaluation import formats
from glimprouter.evaluation.agreement import agreement_of, hard_steps, read_steps
from glimprouter.evaluation.arms import ArmResults
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
    "small, large alone, %",
    "H_init, %",
    "minus Random",
    "minus H_step",
    "wrong steps, %",
    "AUROC of H_init",
    "of H_step",
    "H_init, median",
    "first tokens agree, %",
    "in hard steps",
    "later tokens, in hard steps",
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
        f"At {100 * WANTED:g} % of the steps wanted from the large model. AUROC: of the small"
        " model's own steps, the wrong ones. Agreement: of both models' likeliest tokens, on the"
        " large model's chains; hard steps are those above the threshold."
    )
    for family in dict.fromkeys(job.family for job in jobs):
        own = [job for job in jobs if job.family == family and not job.dear]
        own.sort(key=lambda job: (not job.whole, job.varies))
        rows = [_row(job, records[job.name], arms[job.name]) for job in own]
        yield Heading(family, 3)
        yield Table(list(COLUMNS), rows, "", frozenset({0}))


def _row(job: Job, records: Records, arms: Sequence[ArmResults]) -> list[str]:
    entropy = found(arms, "entropy", WANTED)
    alone = [found(arms, name, None) for name in ("small-alone", "large-alone")]
    row = [job.varies, ", ".join("" if a is None else _percent(a) for a in alone)]
    row.append("" if entropy is None else formats.percent_interval(entropy.accuracy))
    for other in (found(arms, "random", WANTED), found(arms, "step-entropy", WANTED)):
        known = entropy is not None and other is not None
        row.append(formats.points_interval(compare(entropy, other).difference) if known else "")
    scores = aurocs_of(wrong_steps(records))[1]
    wrong = scores.positives / scores.observations if scores.observations else math.nan
    row.append(formats.percent(wrong))
    for name in ("H_init", "H_step"):
        row.append(formats.interval(scores.aurocs[name]) if name in scores.aurocs else "")
    entropies = [step.entropy for step in small_steps(records) if step.entropy is not None]
    row.append(f"{np.median(entropies):.3f}" if entropies else "")
    hard = hard_steps(records, WANTED) or []
    row.append(formats.percent(agreement_of(read_steps(records)).first.estimate))
    of_hard = agreement_of(hard)
    row += [formats.percent(each.estimate) for each in (of_hard.first, of_hard.later)]
    return row


def _percent(arm: ArmResults) -> str:
    return formats.percent(arm.accuracy.estimate)
