"""Reports of planted records: every number again, computed from the lines of the file."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evaluation_records import changed, identity, lines_of, plant
from glimprouter.evaluation.prices import Prices, prices_from_gpu_figures
from glimprouter.evaluation.record_file import FILE_NAME
from glimprouter.evaluation.report import write_report

HOSTILE = "<script>alert(1)</script> | `x` \x1b[2J \u202e&amp; ![a](b) </td>"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with planted records, and its report as Markdown."""
    directory = plant(tmp_path_factory.mktemp("planted"))
    return directory, write_report([directory])[1].read_text(encoding="utf-8")


def rows(markdown: str, first_column: str) -> dict[str, list[str]]:
    """The rows of the table whose heading begins so."""
    table = markdown[markdown.index(f"| {first_column} |") :].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in cells[2:]}


def interval(cell: str) -> tuple[float, float, float]:
    found = re.fullmatch(r"([-+\d.]+) \(([-+\d.]+) \.\. ([-+\d.]+)\)", cell)
    assert found, cell
    return float(found[1]), float(found[2]), float(found[3])


def of_kind(directory: Path, kind: str, **values: object) -> list[dict[str, object]]:
    return [
        line
        for line in lines_of(directory / FILE_NAME)
        if line["kind"] == kind and all(line[k] == v for k, v in values.items())
    ]


LABELS = {
    "small-alone": "small-alone",
    "large-alone": "large-alone",
    "random, 30 % wanted": "random share=0.3",
    "entropy, 30 % wanted": "entropy threshold=0.7",
}


@pytest.mark.parametrize(("title", "label"), LABELS.items(), ids=LABELS)
def test_the_frontier_again(planted: tuple[Path, str], title: str, label: str) -> None:
    directory, markdown = planted
    cells = rows(markdown, "arm")[title]
    own = of_kind(directory, "problem", arm=label)
    accuracy, low, high = interval(cells[0])
    assert accuracy == round(100 * float(np.mean([r["correct"] for r in own])), 1)
    assert low <= accuracy <= high
    by_problem: dict[object, list[object]] = {}
    for record in own:
        by_problem.setdefault(record["problem"], []).append(record["correct"])
    means = [float(np.mean(runs)) for runs in by_problem.values()]
    half = 1.96 * np.std(means, ddof=1) / math.sqrt(len(means)) * 100
    assert high - low == pytest.approx(2 * half, rel=0.25)
    seeds = [
        round(100 * float(np.mean([r["correct"] for r in own if r["seed"] == s])), 1)
        for s in (0, 1)
    ]
    assert cells[1] == ", ".join(f"{seed:.1f}" for seed in seeds)
    steps = of_kind(directory, "step", arm=label)
    glimpsed = [s for s in steps if s["entropy"] is not None]
    share = "-"
    if glimpsed:
        share = f"{100 * np.mean([s['writer'] == 'large' for s in glimpsed]):.1f}"
    assert cells[2] == share
    large, small = (sum(r[f"{m}_tokens"] for r in own) for m in ("large", "small"))  # type: ignore[misc]
    assert cells[3] == f"{100 * large / (large + small):.1f}"
    assert cells[5] == f"{np.mean([r['large_passes'] for r in own]):.1f}"


def test_thresholds_that_send_nothing_or_everything_say_so(planted: tuple[Path, str]) -> None:
    cells = rows(planted[1], "arm")
    assert cells["entropy threshold=99"][-1] == "sends nothing"
    assert cells["margin threshold=1"][-1] == "sends everything"
    assert cells["entropy, 30 % wanted"][-1] == ""


def test_areas_again(planted: tuple[Path, str]) -> None:
    directory, markdown = planted
    steps = [s for s in of_kind(directory, "step", arm="small-alone")]
    truth = [not s["correct"] for s in steps]
    table = markdown[markdown.index("### Label 1") :]
    cells = rows(table, "signal")
    for name, field, sign in (
        ("H\\_init", "entropy", 1),
        ("margin", "margin", -1),
        ("varentropy", "varentropy", 1),
    ):
        want = roc_auc_score(truth, [sign * s[field] for s in steps])  # type: ignore[operator]
        assert interval(cells[name][0])[0] == pytest.approx(want, abs=5e-4)
    assert interval(cells["H\\_init"][0])[1] > 0.9
    low, high = interval(cells["varentropy"][0])[1:]
    assert low < 0.5 < high
    assert f"{len(steps)} steps of 40 problems, {sum(truth)} positive" in table
    first = rows(markdown[markdown.index("### Label 4") :], "signal")
    kept, chains = [], set()
    for step in steps:
        chain = (step["problem"], step["seed"])
        if chain not in chains:
            kept.append(step)
            if not step["correct"]:
                chains.add(chain)
    want = roc_auc_score([not s["correct"] for s in kept], [s["entropy"] for s in kept])
    assert interval(first["H\\_init"][0])[0] == pytest.approx(want, abs=5e-4)
    assert len(kept) < len(steps)
    probes = of_kind(directory, "probe")
    later = rows(markdown[markdown.index("### Label 2") :], "signal")
    truth = [bool(p["large_correct"]) and not p["small_correct"] for p in probes]
    want = roc_auc_score(truth, [p["entropy"] for p in probes])
    assert interval(later["H\\_init"][0])[0] == pytest.approx(want, abs=5e-4)
    table = rows(markdown, "from this step on")
    lost = sum(bool(p["small_correct"]) and not p["large_correct"] for p in probes)
    assert table["the large model goes on"][1:] == [str(sum(truth)), str(lost)]


def test_the_comparison_with_random_again(planted: tuple[Path, str]) -> None:
    directory, markdown = planted
    cells = rows(markdown, "arms")["entropy, 30 % wanted, minus random"]
    first, second = (
        {(r["problem"], r["seed"]): r["correct"] for r in of_kind(directory, "problem", arm=label)}
        for label in ("entropy threshold=0.7", "random share=0.3")
    )
    want = 100 * np.mean([int(bool(first[k])) - int(bool(second[k])) for k in first])
    assert interval(cells[0])[0] == pytest.approx(want, abs=0.05)
    assert cells[1] == "&lt; 0.001"
    assert "p: sign flips, two-sided" in markdown


def test_prices_again(tmp_path: Path) -> None:
    directory = plant(tmp_path / "in")
    prices = Prices(1.0, 8.0, "token", "cents", "a test")
    path = write_report([directory], tmp_path / "out", prices=prices)[1]
    markdown = path.read_text(encoding="utf-8")
    table = markdown[markdown.index("## What it costs") :]
    cells = rows(table, "arm")
    own = of_kind(directory, "problem", arm="entropy threshold=0.7")
    want = np.mean([r["small_tokens"] + 8 * r["large_tokens"] for r in own])  # type: ignore[operator]
    assert float(cells["entropy, 30 % wanted"][2]) == pytest.approx(want, rel=1e-3)
    assert cells["large-alone"][3] == "100.0"
    assert "in cents (a test)" in table
    assert "not measured here: arXiv 2601.05110, Table 1" in table
    assert not (directory / "report.md").exists()


def test_prices_of_the_gpu_figures(tmp_path: Path) -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    prices = prices_from_gpu_figures(results / "gpu-nvidia-h200-6a697f9.json")
    assert prices.unit == "ms"
    assert 1.0 < prices.small < prices.large < 100.0
    assert "which are not the models evaluated here" in prices.source
    for name, text in (("none", "{}"), ("damaged", "{"), ("other", '{"decode": {"rows": []}}')):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="holds no decoding passes"):
            prices_from_gpu_figures(path)


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_a_model_wrote_stays_text(tmp_path: Path) -> None:
    """In both forms, neither markup nor characters that command a terminal."""
    paths = write_report([plant(tmp_path, text=HOSTILE)])
    page = Page()
    page.feed(paths[0].read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert page.addresses
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert not set("\x1b\u202e") & set(text)
    markdown = paths[1].read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert r"\| \`x\`" in markdown
    assert r"!\[a\](b)" in markdown


def test_figures_of_the_markdown_are_files(planted: tuple[Path, str]) -> None:
    directory, markdown = planted
    named = set(re.findall(r"\]\((figures/[\w-]+\.svg)\)", markdown))
    assert len(named) >= 6
    for name in named:
        assert (directory / name).read_text(encoding="utf-8").startswith("<?xml")


def test_a_report_is_the_same_again(planted: tuple[Path, str], tmp_path: Path) -> None:
    directory, markdown = planted
    paths = write_report([directory], tmp_path)
    assert paths[1].read_text(encoding="utf-8") == markdown
    assert paths[0].read_bytes() == (directory / "report.html").read_bytes()


def test_without_a_checker_of_steps_the_report_says_so(tmp_path: Path) -> None:
    directory = plant(tmp_path, checks_steps=False)
    changed(
        directory / FILE_NAME,
        lambda lines: [
            re.sub(r'"correct": (true|false), "step_', '"correct": null, "step_', line)
            for line in lines
        ],
    )
    markdown = write_report([directory])[1].read_text(encoding="utf-8")
    assert "Not computed: the task planted has no checker of steps." in markdown
    assert "Not shown: the task planted has no checker of steps." in markdown
    assert "### Label 2" in markdown


def test_what_was_not_run_is_named(tmp_path: Path) -> None:
    plan = {**identity()["plan"], "probe_problems": 0}
    directory = plant(tmp_path, plan=plan)
    changed(directory / FILE_NAME, lambda lines: lines[:-7])  # the last problem of the last arm
    markdown = write_report([directory])[1].read_text(encoding="utf-8")
    assert "Not computed: no step was probed" in markdown
    assert "margin threshold=1" in markdown, "its first seed is whole"
    changed(directory / FILE_NAME, lambda lines: lines[: -7 * 40])
    markdown = write_report([directory])[1].read_text(encoding="utf-8")
    assert "Left out: margin threshold=1, 39 of 40 problems are done." in markdown


def test_a_cut_file_is_reported_as_such(tmp_path: Path) -> None:
    path = plant(tmp_path) / FILE_NAME
    path.write_bytes(path.read_bytes()[:-10])
    markdown = write_report([tmp_path])[1].read_text(encoding="utf-8")
    assert "The file ends within a record" in markdown


def test_several_folders_are_one_report(planted: tuple[Path, str], tmp_path: Path) -> None:
    other = plant(tmp_path / "other", task="second")
    markdown = write_report([planted[0], other], tmp_path)[1].read_text(encoding="utf-8")
    assert "## 1. Does routing pay? Task planted" in markdown
    assert "## 2. Does routing pay? Task second" in markdown
    assert (tmp_path / "figures" / "2-frontier.svg").exists()


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one folder"):
        write_report([])
    with pytest.raises(FileNotFoundError):
        write_report([tmp_path])
    (tmp_path / FILE_NAME).write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="is empty"):
        write_report([tmp_path])
    changed(tmp_path / FILE_NAME, lambda _: [])
    plant(tmp_path / "begun")
    changed(tmp_path / "begun" / FILE_NAME, lambda lines: lines[:3])
    with pytest.raises(ValueError, match="holds no solved problem yet; run the evaluation first"):
        write_report([tmp_path / "begun"])
