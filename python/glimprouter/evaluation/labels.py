"""Observations for signals: what was seen before or of a step, and whether the step was hard."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from glimprouter.evaluation.plan import Arm
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.records import ProbeRecord, StepRecord
from glimprouter.evaluation.rules import SMALL_ALONE

__all__ = [
    "SIGNALS",
    "Observations",
    "first_wrong_steps",
    "probed_outcomes",
    "probed_steps",
    "small_steps",
    "wrong_steps",
]

# Name in the report -> recorded field, and whether small values stand for doubt.
SIGNALS: dict[str, tuple[str, bool]] = {
    "H_init": ("entropy", False),
    "max probability": ("max_prob", True),
    "margin": ("margin", True),
    "varentropy": ("varentropy", False),
    "H_step": ("step_entropy", False),
    "PPL_step": ("step_perplexity", False),
}


@dataclass
class Observations:
    """Steps with a label.

    Attributes:
        signals: By name, one value a step, each growing with doubt.
        labels: Whether the step is positive.
        problems: Key of each step's problem.
        left_out: Steps without the label or without a signal.
    """

    signals: dict[str, list[float]]
    labels: list[bool] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    left_out: int = 0

    def add(self, step: StepRecord | ProbeRecord, label: bool | None) -> None:
        """Takes a step that has its label and all signals."""
        values = {name: getattr(step, SIGNALS[name][0]) for name in self.signals}
        if label is None or None in values.values():
            self.left_out += 1
            return
        for name, value in values.items():
            self.signals[name].append(-value if SIGNALS[name][1] else value)
        self.labels.append(label)
        self.problems.append(step.problem)


def small_chains(records: Records) -> list[list[StepRecord]]:
    """The chains of the small model alone on report problems, at the main batch size."""
    label, batch = Arm(SMALL_ALONE).label, records.identity["plan"]["batch"]
    return [
        steps
        for unit, steps in records.steps.items()
        if (unit.split, unit.arm, unit.batch) == ("report", label, batch)
    ]


def small_steps(records: Records) -> list[StepRecord]:
    """All steps of these chains."""
    return [step for steps in small_chains(records) for step in steps]


def wrong_steps(records: Records) -> Observations:
    """The small model's step is wrong, as the task's checker sees it given the steps before."""
    steps = small_steps(records)
    found = _empty(steps)
    for step in steps:
        found.add(step, None if step.correct is None else not step.correct)
    return found


def first_wrong_steps(records: Records) -> Observations:
    """The same up to the first wrong step of a chain; what follows is left out.

    Behind an error a checker may call wrong what only goes on from it.
    """
    found = _empty(small_steps(records))
    for chain in small_chains(records):
        wrong = False
        for step in chain:
            found.add(step, None if wrong or step.correct is None else not step.correct)
            wrong = wrong or step.correct is False
    return found


def probed_outcomes(records: Records) -> Observations:
    """From this step on the small model fails and the large one does not."""
    found = _empty(records.probes)
    for probe in records.probes:
        found.add(probe, probe.large_correct and not probe.small_correct)
    return found


def probed_steps(records: Records) -> Observations:
    """The same, of this one step: the large model writes it and the small one all the others."""
    found = _empty(records.probes)
    for probe in records.probes:
        found.add(probe, probe.once_correct and not probe.small_correct)
    return found


def _empty(steps: list[StepRecord] | list[ProbeRecord]) -> Observations:
    """With those signals that occur at all."""
    present = [
        name
        for name, (field, _) in SIGNALS.items()
        if any(getattr(step, field) is not None for step in steps)
    ]
    return Observations({name: [] for name in present})
