"""What H_init catches: the steps at which the models differ, of which it sends some away.

A routed step is worth its cost only where the small model would have gone on otherwise than the
large one. Whether it would is read off the large model's own chains, at every token of which both
models' likeliest next tokens are known: no routed run, and no checker, is in it. So it can stand
beside what routing gained in the same evaluation, and explain it or not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from causes import WANTED, minus
from scipy import stats

from glimprouter.evaluation import formats
from glimprouter.evaluation.agreement import hard_steps, read_steps
from glimprouter.evaluation.arms import ArmResults
from glimprouter.evaluation.document import Block, Heading, Paragraph, Table
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.records import StepRecord
from glimprouter.evaluation.statistics import Interval, aurocs, share_difference, share_interval

if TYPE_CHECKING:
    from jobs import Job

COLUMNS = (
    "evaluation",
    "steps",
    "the models differ, %",
    "of these at the first token, %",
    "AUROC of H_init for differing first tokens",
    "sent, of all steps, %",
    "sent, of those that differ at the first token, %",
    "sent, of those that differ later only, %",
    "sent, of those that differ, minus of all, points",
    "right answers of H_init minus Random, points",
)
OPENERS = (
    "evaluation",
    "begins with",
    "steps",
    "small model differs at the first token, %",
    "later only, %",
    "H_init, median, where first tokens agree",
    "where they differ",
    "sent, of all, %",
    "sent, of those that differ at the first token, %",
)
LEAST_EVALUATIONS = 5  # for a rank correlation


@dataclass(frozen=True, slots=True)
class Caught:
    """Steps of the large model's chains, by whether H_init is above the threshold.

    Attributes:
        steps: All that both models read.
        hard: Those of them above the threshold.
    """

    steps: Sequence[StepRecord]
    hard: Sequence[StepRecord]

    def sent(self, of: Callable[[StepRecord], bool]) -> float:
        """Share of some steps that are above the threshold; NaN where there are none."""
        some = sum(map(of, self.steps))
        return sum(map(of, self.hard)) / some if some else float("nan")

    def interval(self, of: Callable[[StepRecord], bool]) -> str:
        """The same in per cent, with its interval over problems."""
        some, sent = (Counter(s.problem for s in each if of(s)) for each in (self.steps, self.hard))
        known = share_interval([sent[key] for key in some], list(some.values()))
        if known is None:
            return formats.percent(self.sent(of))
        return formats.percent_interval(Interval(known.share, known.low, known.high))

    @property
    def auroc(self) -> str:
        """Of H_init, for steps whose first token differs."""
        known = [step for step in self.steps if step.entropy is not None]
        scores = aurocs(
            {"H_init": [step.entropy or 0.0 for step in known]},
            [differs_first(step) for step in known],
            [step.problem for step in known],
        )
        return formats.interval(scores.aurocs["H_init"])

    @property
    def advantage(self) -> Interval:
        """How much more of the steps that differ is sent than of all; over problems."""
        keys = sorted({step.problem for step in self.steps})

        def counted(of: Callable[[StepRecord], bool]) -> tuple[list[int], list[int]]:
            sent, some = (Counter(s.problem for s in x if of(s)) for x in (self.hard, self.steps))
            return [sent[key] for key in keys], [some[key] for key in keys]

        return share_difference(counted(differs), counted(lambda step: True))


def differs(step: StepRecord) -> bool:
    """Whether the small model's likeliest token is another one anywhere in the step."""
    return "0" in (step.agrees or "")


def differs_first(step: StepRecord) -> bool:
    """At its first token."""
    return (step.agrees or "")[:1] == "0"


def differs_later(step: StepRecord) -> bool:
    """Behind its first token only."""
    return differs(step) and not differs_first(step)


def caught_of(records: Records) -> Caught | None:
    """By the threshold for :data:`WANTED`; None where that, or the large model, was not run."""
    steps, hard = read_steps(records), hard_steps(records, WANTED)
    return Caught(steps, hard) if steps and hard is not None else None


def caught(
    jobs: Sequence[Job],
    records: Mapping[str, Records],
    arms: Mapping[str, Sequence[ArmResults]],
) -> Iterator[Block]:
    """Tables, and whether what is caught goes with what is gained."""
    yield Heading("What H_init catches")
    yield Paragraph(
        "On the large model's own chains, by both models' likeliest tokens, so without a routed"
        f" run; all steps count alike. Sent: above the threshold for {100 * WANTED:g} % of them."
        " What is sent of those that differ, minus what is sent of all, is what a coin does not do."
        " The last column is from routed runs: two of each of the pairs, one of each variation."
    )
    own = [job for job in jobs if not job.dear]
    known = {job.name: each for job in own if (each := caught_of(records[job.name])) is not None}
    gains = {name: _gain(arms[name]) for name in known}
    yield Table(list(COLUMNS), [_row(n, c, gains[n]) for n, c in known.items()], "", frozenset({0}))
    yield Paragraph(_together(own, known, gains))
    yield Heading("By what a step begins with", 3)
    yield Table(
        list(OPENERS),
        [row for name, each in known.items() for row in _openers(name, each)],
        "Numbers are one kind. Kinds of fewer than ten steps are left out.",
        frozenset({0, 1}),
    )


def _gain(arms: Sequence[ArmResults]) -> Interval:
    """H_init minus Random."""
    test = minus(arms, "random")
    return Interval(*[float("nan")] * 3) if test is None else test.difference


def _row(name: str, own: Caught, gain: Interval) -> list[str]:
    count = len(own.steps)
    differing = sum(map(differs, own.steps))
    first = sum(map(differs_first, own.steps))
    return [
        name,
        str(count),
        formats.percent(differing / count),
        formats.percent(first / differing if differing else float("nan")),
        own.auroc,
        formats.percent(own.sent(lambda step: True)),
        own.interval(differs_first),
        own.interval(differs_later),
        formats.points_interval(own.advantage),
        formats.points_interval(gain),
    ]


def _together(
    jobs: Sequence[Job], known: Mapping[str, Caught], gains: Mapping[str, Interval]
) -> str:
    """Rank correlation over all evaluations, and within each family."""
    families = dict.fromkeys(job.family for job in jobs)
    groups = {"all": list(known)}
    groups |= {f: [j.name for j in jobs if j.family == f and j.name in known] for f in families}
    parts = []
    for title, names in groups.items():
        sure = [(known[name].advantage, gains[name]) for name in names]
        pairs = [tuple(i.estimate for i in each) for each in sure if np.isfinite(each).all()]
        if len(pairs) < LEAST_EVALUATIONS:
            continue
        columns = list(zip(*pairs, strict=True))
        if min(len(set(column)) for column in columns) > 1:  # or there are no ranks
            parts.append(f"{title} {stats.spearmanr(*columns).statistic:.2f} ({len(pairs)})")
    if not parts:
        return "No rank correlation of the last two columns: too few evaluations, or no ranks."
    return (
        "Rank correlation (Spearman) of the last two columns, and of how many evaluations, which"
        " share problems and models and so are not independent: " + "; ".join(parts) + "."
    )


def _openers(name: str, own: Caught) -> Iterator[list[str]]:
    for opener, _ in Counter(map(opener_of, own.steps)).most_common():
        some = [step for step in own.steps if opener_of(step) == opener]
        if len(some) < 10:
            continue
        part = Caught(some, [step for step in own.hard if opener_of(step) == opener])
        entropies = [
            [s.entropy for s in some if differs_first(s) == other and s.entropy is not None]
            for other in (False, True)
        ]
        yield [
            name,
            opener,
            str(len(some)),
            formats.percent(sum(map(differs_first, some)) / len(some)),
            formats.percent(sum(map(differs_later, some)) / len(some)),
            *(f"{np.median(each):.3f}" if each else "-" for each in entropies),
            formats.percent(part.sent(lambda step: True)),
            part.interval(differs_first),
        ]


def opener_of(step: StepRecord) -> str:
    """The word that a step begins with, "a number", or "something else"."""
    match = re.match(r"\s*([^\W\d]+|\d)", step.text)
    if match is None:
        return "something else"
    return "a number" if match[1].isdigit() else match[1]
