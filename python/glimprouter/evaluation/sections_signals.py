"""Sections of the report about signals: which steps they point at, and how they are spread."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from glimprouter.evaluation import figures, formats
from glimprouter.evaluation.agreement import (
    agreement_by_position,
    agreement_of,
    hard_steps,
    read_steps,
)
from glimprouter.evaluation.document import Block, Figure, Heading, Paragraph, Table
from glimprouter.evaluation.labels import (
    Observations,
    first_wrong_steps,
    probed_outcomes,
    probed_steps,
    small_steps,
    wrong_steps,
)
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.statistics import (
    SignalScores,
    aurocs,
    peaks_of,
)

__all__ = ["signal_sections"]

SHOWN_STEPS = 5  # of each kind
LEAST_TOKENS = 30  # at a position of a step, for a point in the picture
LABELS = {
    "the small model's step is wrong": wrong_steps,
    "from here the small model fails and the large one succeeds": probed_outcomes,
    "from here the small model fails, and with this one step by the large one it succeeds": (
        probed_steps
    ),
    "the step is the first wrong one of the small model's chain": first_wrong_steps,
}


def signal_sections(records: Records) -> Iterator[Block]:
    """All of them."""
    yield Heading("Which steps do the signals point at?")
    yield Paragraph(
        "An observation is a step. H_init, max probability, margin and varentropy are read from the"
        " first token before anybody writes the step; H_step and PPL_step need the whole step,"
        " drafted by the small model. AUROC 0.5 is a coin, 1 is perfect; intervals (95 %) are by"
        " resampling problems, since steps of one problem are not independent. 'H_init minus' is"
        " the difference in the same resamples: where its interval holds 0, none is shown."
    )
    found = {title: aurocs_of(read(records)) for title, read in LABELS.items()}
    for title, (observations, scores) in found.items():
        yield from _label(records, title, observations, scores)
    drawn = {
        f"label {place}": scores.aurocs
        for place, (_, scores) in enumerate(found.values(), start=1)
        if scores.positives
    }
    if drawn:
        yield Figure("auroc", figures.forest(drawn), "AUROC by label, in the order above.")
    yield from _entropies(records)
    yield from _agreement(records)
    yield from _surprising(records)


def aurocs_of(observations: Observations) -> tuple[Observations, SignalScores]:
    """The observations, and how well each signal tells their label."""
    return observations, aurocs(observations.signals, observations.labels, observations.problems)


def _label(
    records: Records, title: str, observations: Observations, scores: SignalScores
) -> Iterator[Block]:
    yield Heading(f"Label {1 + list(LABELS).index(title)}: {title}", 3)
    if not scores.observations:
        yield Paragraph(f"Not computed: {_why_nothing(records, title)}.")
        return
    if title.endswith("large one succeeds"):
        yield _outcomes(records)
    rows = [
        [name, formats.interval(scores.aurocs[name]), formats.interval(scores.beyond[name])]
        for name in scores.aurocs
    ]
    rows[0][2] = "-"
    remark = "" if scores.remark is None else f" {scores.remark}."
    share = scores.positives / scores.observations
    yield Table(
        ["signal", "AUROC (95 %)", "H_init minus it (95 %)"],
        rows,
        f"{scores.observations} steps of {scores.problems} problems, {scores.positives} positive"
        f" ({formats.percent(share)} %); {observations.left_out} steps without label or signal are"
        f" left out.{remark}",
    )


def _why_nothing(records: Records, title: str) -> str:
    if title.startswith("from here"):
        return "no step was probed (the plan has no probed problems, or they are not done yet)"
    if not records.identity.get("checks_steps"):
        return f"the task {records.identity['task']} has no checker of steps"
    return "no step of the small model alone was judged"


def _outcomes(records: Records) -> Table:
    probes = records.probes
    names = {
        "the small model goes on": [probe.small_correct for probe in probes],
        "the large model goes on": [probe.large_correct for probe in probes],
        "the large model writes this step, the small one goes on": [
            probe.once_correct for probe in probes
        ],
    }
    small = names["the small model goes on"]
    rows = [
        [
            name,
            formats.percent(sum(right) / len(right)),
            str(sum(ours and not base for ours, base in zip(right, small, strict=True))),
            str(sum(base and not ours for ours, base in zip(right, small, strict=True))),
        ]
        for name, right in names.items()
    ]
    done = records.probed.values()
    missed = sum(each.asked - each.reached for each in done)
    note = f"; {missed} steps were not reached again" if missed else ""
    return Table(
        ["from this step on", "right, %", "right where small fails", "wrong where small does not"],
        rows,
        f"Three continuations, {len(probes)} times, from {sum(p.reached for p in done)} steps drawn"
        f" at random from the small model's own chains of {len(done)} problems. The three draw the"
        f" same random numbers, yet chance makes some of them fail. The"
        f" {records.identity['config']['answer_model']} model answers in all of them{note}.",
    )


def _entropies(records: Records) -> Iterator[Block]:
    yield Heading("How H_init is spread")
    steps = [step for step in small_steps(records) if step.entropy is not None]
    values = [step.entropy for step in steps if step.entropy is not None]
    if not values:
        yield Paragraph("No step of the small model alone was glimpsed.")
        return
    names = {True: "right steps", False: "wrong steps", None: "not judged"}
    groups = {
        name: [s.entropy for s in steps if s.correct is verdict and s.entropy is not None]
        for verdict, name in names.items()
    }
    groups = {name: group for name, group in groups.items() if group}
    quantiles = np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9])
    shown = ", ".join(f"{value:.3f}" for value in quantiles)
    problems = len({step.problem for step in steps})
    yield Figure(
        "h-init",
        figures.histogram(groups),
        f"H_init of {len(values)} steps of {problems} problems, small model alone.",
    )
    text = f"10, 25, 50, 75 and 90 % of the steps lie below {shown} nats."
    peaks = peaks_of(values)
    if peaks is not None:
        apart = "apart" if peaks.separation > 2 else "not apart"
        text += (
            f" Of two Gaussians fitted to them ({formats.percent(peaks.weights[0])} % around"
            f" {peaks.means[0]:.3f} nats and {formats.percent(peaks.weights[1])} % around"
            f" {peaks.means[1]:.3f}), Ashman's D is {peaks.separation:.2f}: the two are {apart}"
            f" (the bound is 2). BIC favours two over one by {peaks.better_by:.0f}, which a skew"
            " alone brings about, too: judge two peaks by the picture."
        )
    yield Paragraph(text)


def _agreement(records: Records) -> Iterator[Block]:
    yield Heading("Where the two models agree")
    steps = read_steps(records)
    if not steps:
        why = "the models do not read the same tokens, since their tokenizers differ"
        if records.identity["weights"] is None:
            why = "the models were on engines, which do not say what they find most likely"
        elif records.identity.get("one_vocabulary"):
            why = "no chain of the large model alone is recorded"
        yield Paragraph(f"Not computed: {why}.")
        return
    yield Figure(
        "agreement",
        figures.agreement(agreement_by_position(steps, LEAST_TOKENS)),
        "Share of tokens whose most likely token is the same for both models, on the large model's"
        f" own chains, by position; positions with at least {LEAST_TOKENS} tokens; 95 % over"
        " problems.",
    )
    groups = {"all": agreement_of(steps)}
    for wanted in sorted({arm.wanted for arm in records.arms if arm.wanted is not None}):
        hard = hard_steps(records, wanted)
        if hard is not None:
            groups[f"H_init above its threshold for {100 * wanted:g} %"] = agreement_of(hard)
    rows = [
        [
            name,
            str(own.steps),
            formats.percent_interval(own.first),
            formats.percent_interval(own.later),
            formats.percent(own.whole),
        ]
        for name, own in groups.items()
        if own.steps
    ]
    yield Table(
        ["steps", "how many", "first tokens, %", "later tokens, %", "all later tokens, %"],
        rows,
        "Tokens on which both models agree (mean of the problems' shares, 95 % over problems), and"
        " steps in which they agree on every token behind the first. Above a threshold are steps"
        " that the small model, reading these chains again, would have given to the large one.",
        frozenset({0}),
    )


def _surprising(records: Records) -> Iterator[Block]:
    yield Heading("The most surprising steps")
    steps = [s for s in small_steps(records) if s.entropy is not None and s.correct is not None]
    if not steps:
        yield Paragraph(f"Not shown: {_why_nothing(records, 'steps')}.")
        return
    distinct = {(step.problem, step.index, step.text): step for step in steps}  # of all seeds
    ordered = sorted(distinct.values(), key=lambda step: step.entropy or 0.0)
    sure = [step for step in ordered if not step.correct][:SHOWN_STEPS]
    unsure = [step for step in reversed(ordered) if step.correct][:SHOWN_STEPS]
    rows = [
        [step.problem, str(step.index), f"{step.entropy:.3f}", what, step.text]
        for what, own in (("wrong", sure), ("right", unsure))
        for step in own
    ]
    yield Table(
        ["problem", "step", "H_init, nats", "judged", "text"],
        rows,
        "Steps of the small model alone that contradict the rule most: wrong ones with the lowest"
        " H_init, right ones with the highest.",
        frozenset({3, 4}),
    )
