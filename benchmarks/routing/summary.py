"""One table over several evaluations: what each rule is worth, how surely."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caught import caught
from causes import causes, found

from glimprouter.evaluation.arms import ArmResults, arms_of
from glimprouter.evaluation.document import Block, Document, Heading, Paragraph, Table
from glimprouter.evaluation.formats import interval, percent_interval, points_interval
from glimprouter.evaluation.record_file import Records, read_records
from glimprouter.evaluation.report_markdown import to_markdown
from glimprouter.evaluation.rules import rule_of
from glimprouter.evaluation.sections_arms import compare
from glimprouter.evaluation.sections_signals import LABELS, aurocs_of

if TYPE_CHECKING:
    from jobs import Job

SYSTEMS = ("do-stop-me-now", "self-route", "laser", "a2r", "fractured", "spirit", "ari", "ftp")
RULES = (
    "random",
    "entropy",
    "entropy entropy_top_k=20",
    "max-probability",
    "margin",
    "varentropy",
    "step-entropy",
    "step-perplexity",
    "learned",
    "wanted-share",
    "hysteresis",
    "entropy large_tokens=1",
    "entropy large_tokens=2",
    "entropy large_tokens=4",
    "entropy drafts=0",
    "mixture",
    "reward",
    "large-alone drafts=0",
    "spec-cot",
    "arbitrage-oracle",
    "spec-reason",
    "spec-reason expected=1",
    *SYSTEMS,
)
ALONE = ("small-alone", "large-alone")


def write_summary(jobs: Sequence[Job], records: Path, out: Path) -> tuple[Path, Path]:
    """Writes ``summary.md`` and ``summary.json``.

    Args:
        jobs: The evaluations.
        records: Folder of all of theirs.
        out: Where to write.
    """
    every = {job.name: read_records(records / job.name) for job in jobs}
    arms = {name: arms_of(records)[0] for name, records in every.items()}
    blocks: list[Block] = [
        Paragraph(
            "Made by benchmarks/routing/report.py. Intervals are 95 %, over problems. Large tokens"
            " are of all written ones, answers (of policies always by the large model) included."
        )
    ]
    blocks += causes(jobs, every, arms)
    blocks += caught(jobs, every, arms)
    for title, group in _groups(jobs).items():
        own = {job.name: arms[job.name] for job in group}
        records_of_group = {name: every[name] for name in own}
        blocks.append(Heading(title))
        blocks += _accuracies(records_of_group, own)
        blocks += _comparisons(own)
        blocks += _signals(records_of_group)
    markdown, data = out / "summary.md", out / "summary.json"
    markdown.write_text(to_markdown(Document("Does routing pay? A summary", blocks), "figures"))
    data.write_text(json.dumps(_data(every, arms), indent=1) + "\n")
    return markdown, data


def _groups(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """What the tables are of; no table where nothing ran."""
    groups = {
        "The pairs": [job for job in jobs if job.whole],
        "What is dear": [job for job in jobs if job.dear],
    }
    for family in dict.fromkeys(job.family for job in jobs):
        own = [job for job in jobs if job.family == family and not (job.whole or job.dear)]
        groups[f"Variations of {family}"] = own
    return {title: group for title, group in groups.items() if group}


def _places(arms: Mapping[str, Sequence[ArmResults]]) -> list[tuple[str, float | None]]:
    """Rules with their shares, in the order of RULES."""
    present = {(arm.kind, arm.arm.wanted) for each in arms.values() for arm in each}
    shares = sorted({wanted for _, wanted in present if wanted is not None})
    order = [(kind, None) for kind in ALONE]
    order += [(kind, wanted) for wanted in shares for kind in RULES]
    order += [(kind, None) for kind in RULES]
    return [place for place in order if place in present]


def _title(kind: str, wanted: float | None) -> str:
    return kind if wanted is None else f"{kind}, {100 * wanted:g} % wanted"


def _accuracies(
    every: Mapping[str, Records], arms: Mapping[str, Sequence[ArmResults]]
) -> Iterator[Block]:
    yield Heading("Right answers, %, and the large model's share of the tokens", 3)
    rows = []
    for kind, wanted in _places(arms):
        row = [_title(kind, wanted)]
        for each in arms.values():
            arm = found(each, kind, wanted)
            if arm is None:
                row.append("")
                continue
            share = f", {100 * arm.token_share:.0f} %" if arm.priced else ""
            row.append(percent_interval(arm.accuracy) + share)
        rows.append(row)
    problems = {name: len(each[0].runs) if each else 0 for name, each in arms.items()}
    seeds = {name: len(each[0].seeds) if each else 0 for name, each in arms.items()}
    sizes = "; ".join(f"{name}: {n} problems x {seeds[name]}" for name, n in problems.items())
    temperatures = "; ".join(
        f"{n}: {r.identity['config']['temperature']}" for n, r in every.items()
    )
    caption = f"{sizes}. Temperatures: {temperatures}."
    yield Table(["arm", *arms], rows, caption, frozenset(range(1, len(arms) + 1)))


def _comparisons(arms: Mapping[str, Sequence[ArmResults]]) -> Iterator[Block]:
    yield Heading("Differences in points over the same problems", 3)
    pairs = [
        ("entropy", "random"),
        ("hysteresis", "entropy"),
        ("entropy", "step-entropy"),
        ("entropy", "step-perplexity"),
        ("entropy", "margin"),
        ("entropy", "learned"),
        ("entropy", "spec-cot"),
        ("entropy", "spec-reason"),
        ("entropy", "spec-reason expected=1"),
        ("entropy large_tokens=1", "entropy"),
        ("entropy large_tokens=1", "random"),
    ]
    rows = []
    shares = sorted({a.arm.wanted for each in arms.values() for a in each if a.arm.wanted})
    for wanted in shares:
        for one, other in pairs:
            row = [f"{one}, minus {other}, {100 * wanted:g} % wanted"]
            for each in arms.values():
                first, second = found(each, one, wanted), found(each, other, wanted)
                known = first is not None and second is not None
                row.append(points_interval(compare(first, second).difference) if known else "")
            if any(row[1:]):
                rows.append(row)
    yield Table(["arms", *arms], rows, "Paired by problem and seed.", frozenset({0}))


def _signals(every: Mapping[str, Records]) -> Iterator[Block]:
    yield Heading("AUROC of each signal", 3)
    for title, read in LABELS.items():
        scores = {name: aurocs_of(read(records))[1] for name, records in every.items()}
        scores = {name: each for name, each in scores.items() if each.positives}
        if not scores:
            continue
        yield Heading(title, 4)
        names = list(dict.fromkeys(n for each in scores.values() for n in each.aurocs))
        rows = [
            [n, *(interval(s.aurocs[n]) if n in s.aurocs else "" for s in scores.values())]
            for n in names
        ]
        counts = "; ".join(f"{n}: {s.positives} of {s.observations}" for n, s in scores.items())
        yield Table(["signal", *scores], rows, f"Positive steps: {counts}.", frozenset({0}))


def _data(every: Mapping[str, Records], arms: Mapping[str, Sequence[ArmResults]]) -> dict[str, Any]:
    """The same for programs: by evaluation, who ran it where, and what each arm did."""
    data: dict[str, Any] = {}
    for name, records in every.items():
        identity = records.identity
        data[name] = {
            "task": identity["task"],
            "config": identity["config"],
            "plan": identity["plan"],
            "weights": identity["weights"],
            "sessions": [dataclasses.asdict(session) for session in records.sessions],
            "arms": [
                {
                    "arm": arm.title,
                    "parameters": arm.arm.parameters,
                    "accuracy": list(arm.accuracy),
                    "by_seed": arm.seed_accuracies,
                    "step_share": None if arm.step_share is None else arm.step_share.share,
                    "token_share": arm.token_share if arm.priced else None,
                    "decision": rule_of(arm.arm.rule).decision,
                    "decided": arm.mean(lambda r: r.decision or 0.0).estimate,
                    "small_passes": arm.mean(lambda r: r.small_passes).estimate,
                    "large_passes": arm.mean(lambda r: r.large_passes).estimate,
                    "seconds": arm.mean(lambda r: r.seconds).estimate,
                }
                for arm in arms[name]
            ],
        }
    return data
