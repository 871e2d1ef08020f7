"""Sections of the report about arms: the frontier, matched shares, thresholds, costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from glimprouter.evaluation import figures, formats, paper
from glimprouter.evaluation.arms import ArmResults, Incomplete, arms_of
from glimprouter.evaluation.document import Block, Figure, Heading, Paragraph, Table
from glimprouter.evaluation.prices import Prices
from glimprouter.evaluation.record_file import Records
from glimprouter.evaluation.rules import LARGE_ALONE, RULES, SMALL_ALONE, rule_of
from glimprouter.evaluation.settings import settings_of
from glimprouter.evaluation.statistics import Interval, PairedTest, paired_test

__all__ = ["arm_sections"]

RIVALS = ("random", "step-entropy")  # at matched share, as in the paper's ablation
OTHER_MODELS = "not the pair as it is: see Systems"
UNLIKE = 0.05  # shares of large tokens further apart than this are not matched


def arm_sections(records: Records, prices: Prices) -> Iterator[Block]:
    """All of them."""
    arms, partial = arms_of(records)
    yield from _frontier(records, arms, partial)
    yield from _matched(arms)
    yield from _thresholds(arms)
    yield from _costs(arms, prices)
    yield from _batches(records)


def _frontier(
    records: Records, arms: Sequence[ArmResults], partial: Sequence[Incomplete]
) -> Iterator[Block]:
    yield Heading("Accuracy against the large model's share")
    if not arms:
        yield Paragraph("No arm is complete yet: run the evaluation to its end.")
    else:
        rows = [_frontier_row(arm) for arm in arms]
        batch = records.identity["plan"]["batch"]
        yield Table(
            [
                "arm",
                "right, % (95 % over problems)",
                "by seed, %",
                "large steps, %",
                "large tokens, %",
                "passes small",
                "passes large",
                "seconds (95 %)",
                "remark",
            ],
            rows,
            f"{len(arms[0].runs)} report problems, each once a seed. Large steps: of the glimpsed"
            " ones. Large tokens: of all written ones, answers included; routed runs have theirs"
            f" from the {records.identity['config']['answer_model']} model. Passes and seconds are"
            " means of a problem, prompt included; seconds are those of its forward passes in"
            f" batches of up to {batch}, each pass shared by the problems in it. Arms took turns,"
            " but what else the machine did is in the seconds; their interval does not know of"
            " that.",
            frozenset({8}),
        )
        yield Figure(
            "frontier",
            figures.frontier([arm for arm in arms if arm.priced]),
            "Right answers against what they cost. Error bars reach from the worst to the best"
            " seed; the uncertainty over problems is in the table.",
        )
    for each in partial:
        yield Paragraph(f"Left out: {each.title}, {each.done} of {each.wanted} problems are done.")


def _frontier_row(arm: ArmResults) -> list[str]:
    share = arm.step_share
    errors = sum(record.error is not None for record in arm.records)
    one = rule_of(arm.arm.rule).one_at_a_time
    remarks = [arm.sends or "", f"{errors} runs failed" if errors else ""]
    remarks += ["one problem at a time" if one else "", "" if arm.priced else OTHER_MODELS]
    passes = [arm.mean(lambda r: r.small_passes), arm.mean(lambda r: r.large_passes)]
    return [
        arm.title,
        formats.percent_interval(arm.accuracy),
        ", ".join(map(formats.percent, arm.seed_accuracies)),
        formats.percent(math.nan if share is None else share.share),
        formats.percent(arm.token_share),
        *(f"{each.estimate:.1f}" if arm.priced else "-" for each in passes),
        formats.number_interval(arm.mean(lambda r: r.seconds)),
        "; ".join(filter(None, remarks)),
    ]


def _matched(arms: Sequence[ArmResults]) -> Iterator[Block]:
    yield Heading("At the same wanted share: against Random and H_step, and the large model")
    pairs = list(_pairs(arms))
    for rule in RIVALS:
        if not any(other.arm.rule == rule for _, other in pairs):
            why = "it was not run" if rule in RULES else "this version has no such policy"
            yield Paragraph(f"No comparison with {rule}: {why}.")
    if not pairs:
        return
    tests = [compare(arm, other) for arm, other in pairs]
    adjusted = stats.false_discovery_control([test.p_value for test in tests], method="bh")
    kinds = sorted({test.test for test in tests})
    rows = []
    for (arm, other), test, p_value in zip(pairs, tests, adjusted.tolist(), strict=True):
        shares = f"{formats.percent(arm.token_share)} / {formats.percent(other.token_share)}"
        unlike = abs(arm.token_share - other.token_share) > UNLIKE
        unlike = unlike and other.arm.rule != LARGE_ALONE
        rows.append(
            [
                f"{arm.title}, minus {other.kind}",
                formats.points_interval(test.difference),
                formats.p_value(test.p_value),
                formats.p_value(p_value),
                shares,
                "shares differ" if unlike else "",
            ]
        )
    yield Table(
        ["arms", "points (95 %)", "p", "p, adjusted", "large tokens, %", "remark"],
        rows,
        f"Difference in right answers over the same {tests[0].problems} problems, in percentage"
        f" points. p: {' or '.join(kinds)}, two-sided; adjusted for all {len(tests)} comparisons"
        " (Benjamini and Hochberg). Where obtained shares differ by more than 5 points, a"
        " difference may come from the share.",
        frozenset({5}),
    )


def _pairs(arms: Sequence[ArmResults]) -> Iterator[tuple[ArmResults, ArmResults]]:
    """Which arms are compared: with each rival, without their settings, with the large model."""
    plain = [arm for arm in arms if not settings_of(arm.arm.parameters)]
    for rival in (*RIVALS, None, LARGE_ALONE):
        for arm in arms:
            changed = bool(settings_of(arm.arm.parameters))
            for other in plain:
                if rival == LARGE_ALONE:
                    fits = other.arm.rule == LARGE_ALONE and other is not arm
                    fits = fits and arm.arm.rule != SMALL_ALONE
                elif rival is None:
                    same = (other.arm.rule, other.arm.wanted) == (arm.arm.rule, arm.arm.wanted)
                    fits = changed and same and arm.arm.wanted is not None
                else:
                    fits = arm.arm.wanted is not None and arm.arm.rule not in RIVALS
                    fits = fits and (other.arm.rule, other.arm.wanted) == (rival, arm.arm.wanted)
                if fits and set(arm.seeds) & set(other.seeds):
                    yield arm, other


def compare(first: ArmResults, second: ArmResults) -> PairedTest:
    """Right answers of two arms over the seeds that both have."""
    seeds = [seed for seed in first.seeds if seed in second.seeds]

    def right(arm: ArmResults) -> list[list[bool]]:
        places = [arm.seeds.index(seed) for seed in seeds]
        return [[arm.right[key][place] for place in places] for key in sorted(arm.runs)]

    return paired_test(right(first), right(second))


def _thresholds(arms: Sequence[ArmResults]) -> Iterator[Block]:
    wanted = [arm for arm in arms if arm.arm.wanted is not None]
    if not wanted:
        return
    yield Heading("Thresholds: wanted and obtained shares")
    rows = []
    for arm in wanted:
        share = arm.step_share
        set_by = rule_of(arm.arm.rule).set_by
        assert set_by is not None  # or no share could have been wanted
        rows.append(
            [
                arm.kind,
                formats.percent(arm.arm.wanted or math.nan),
                f"{set_by} = {arm.arm.parameters[set_by]:.4g}",
                formats.percent(
                    math.nan if arm.arm.development_share is None else arm.arm.development_share
                ),
                "-" if share is None else formats.percent_interval(Interval(*share)),
                formats.percent(arm.accuracy.estimate),
                arm.sends or "",
            ]
        )
    yield Table(
        [
            "rule",
            "wanted, %",
            "setting",
            "development, %",
            "obtained, % (95 %)",
            "right, %",
            "remark",
        ],
        rows,
        "Shares of the glimpsed steps that the large model writes. Thresholds are chosen on"
        " development problems; the obtained share is that on report problems, 95 % over these. The"
        " threshold varies with the development problems, so a wanted share outside the interval is"
        " nothing unusual; more of them help.",
        frozenset({2, 6}),
    )
    yield Figure("calibration", figures.calibration(wanted), "Wanted against obtained share.")
    chosen = [arm for arm in wanted if "threshold" in arm.arm.parameters]
    if chosen:
        yield Figure(
            "sensitivity",
            figures.sensitivity(chosen),
            "Right answers and large steps against the threshold of each rule.",
        )


def _costs(arms: Sequence[ArmResults], prices: Prices) -> Iterator[Block]:
    yield Heading("What it costs")
    alone = (arm for arm in arms if arm.arm.rule == LARGE_ALONE and not arm.arm.parameters)
    large = next(alone, None)
    rows = []
    for arm in arms:
        total = arm.mean(prices.of).estimate if arm.priced else math.nan
        tokens = [arm.mean(lambda r: r.small_tokens), arm.mean(lambda r: r.large_tokens)]
        relative = seconds = math.nan
        if large is not None and (price := large.mean(prices.of).estimate):
            relative = total / price
        if large is not None and (base := large.mean(lambda r: r.seconds).estimate):
            seconds = arm.mean(lambda r: r.seconds).estimate / base
        rows.append(
            [
                arm.title,
                *(f"{each.estimate:.1f}" if arm.priced else "-" for each in tokens),
                formats.number(total, 4),
                formats.percent(relative),
                formats.percent(seconds),
                formats.percent(arm.accuracy.estimate),
            ]
        )
    yield Table(
        [
            "arm",
            "small tokens",
            "large tokens",
            f"price, {prices.unit}",
            "of large alone, %",
            "seconds, of large alone, %",
            "right, %",
        ],
        rows,
        f"Means of a problem. Price: {formats.number(prices.small, 4)} a {prices.per} of the small"
        f" model, {formats.number(prices.large, 4)} of the large one, in {prices.unit}"
        f" ({prices.source}). Counted, not timed; the seconds are measured here. No price where"
        " what ran is not the pair's two models as they are.",
    )
    yield from _paper()


def _paper() -> Iterator[Block]:
    rows = []
    for (large, method), figures_of in paper.TABLE_1.items():
        base = paper.TABLE_1[large, "large alone"]
        cells = [
            f"{accuracy:.2f} / {seconds:g} ({100 * seconds / whole[1]:.0f} %)"
            for (accuracy, seconds), whole in zip(figures_of, base, strict=True)
        ]
        rows.append([f"{large}, {method}", *cells])
    yield Table(
        ["the paper's figures", *paper.BENCHMARKS],
        rows,
        f"For comparison only, not measured here: {paper.SOURCE}; accuracy in % / seconds a problem"
        " (of its large model alone). Other models, tasks, engine and GPUs.",
    )


def _batches(records: Records) -> Iterator[Block]:
    main = records.identity["plan"]["batch"]
    units = [unit for unit in records.problems if unit.split == "report"]
    sizes = sorted({unit.batch for unit in units} - {main})
    if not sizes:
        return
    yield Heading("Seconds by batch size")
    keys = sorted({unit.problem for unit in units if unit.batch != main})
    columns: dict[int, dict[str, str]] = {}
    for size in sorted([main, *sizes]):
        arms, _ = arms_of(records, size, keys)
        columns[size] = {
            arm.title: _first_seed_seconds(arm)
            for arm in arms
            if not rule_of(arm.arm.rule).one_at_a_time
        }
    titles = dict.fromkeys(title for column in columns.values() for title in column)
    yield Table(
        ["arm", *(f"batch {size}" for size in columns)],
        [[title, *(column.get(title, "-") for column in columns.values())] for title in titles],
        f"Seconds a problem over the same {len(keys)} problems, first seed: of its forward passes,"
        " each shared by the problems in it. Measured once, on a machine that may have had other"
        " work.",
    )


def _first_seed_seconds(arm: ArmResults) -> str:
    return formats.number(float(np.mean([runs[0].seconds for runs in arm.runs.values()])))
