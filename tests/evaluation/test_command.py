"""`glimprouter evaluate`: what a user may get wrong, in one line, with nothing left behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cli_runs import PAIR, ended
from evaluation_records import plant
from glimprouter.evaluation.record_file import FILE_NAME

RUN = ("evaluate", "run", *PAIR, "--task", "list_reduction", "--out", "TMP/out")
OWN = """
from glimprouter.tasks import Task
class Mine(Task):
    name = "mine"
    def problems(self, count, split, seed=0): raise ValueError("no problems at all")
    def is_correct(self, problem, answer): return False
class Other: pass
"""
BAD: dict[str, tuple[Sequence[str], str]] = {
    "policy": ((*RUN, "--policy", "oracle"), "unknown policy 'oracle'; there are small-alone"),
    "parameter": ((*RUN, "--policy", "margin:tau=1"), "policy margin has no parameter 'tau'"),
    "share": ((*RUN, "--shares", "0.5,1.5"), "a wanted share must lie in (0, 1), got 1.5"),
    "shares": ((*RUN, "--shares", "half"), "--shares takes numbers with commas between them"),
    "batches": ((*RUN, "--timing-batches", "1.5"), "--timing-batches takes whole numbers"),
    "problems": ((*RUN, "--problems", "1"), "problems must lie in [2"),
    "task": ((*RUN[:6], "--task", "chess", "--out", "TMP/out"), "no task is called 'chess'"),
    "file": ((*RUN, "--task-file", "TMP/x"), "it reads no file"),
    "own task": ((*RUN, "--task", "TMP/none.py:Mine"), "there is no file"),
    "broken task": ((*RUN, "--task", "TMP/bad.py:Mine"), "SyntaxError in the file"),
    "no task": ((*RUN, "--task", "TMP/own.py:Other"), "has no class Other of glimprouter.tasks"),
    "temperature": ((*RUN, "--temperature", "-1"), "temperature must lie in"),
    "pair": ((*RUN, "--small", "TMP"), "has no config.json, so it holds no Hugging Face model"),
    "drafts": ((*RUN, "--drafts", "99"), '--drafts: drafts must be "auto" or an integer in'),
    "nothing": (("evaluate", "report", "TMP/none"), "there is no folder"),
    "no records": (("evaluate", "report", "TMP"), "records.jsonl does not exist; give a folder"),
    "empty": (("evaluate", "report", "TMP/empty"), "is empty: no evaluation was written to it"),
    "cost": (("evaluate", "report", "TMP", "--cost-small", "1"), "--cost-large go together"),
    "prices": (
        ("evaluate", "report", "TMP", "--cost-small", "-1", "--cost-large", "2"),
        "the price of the small model must be >= 0, got -1.0",
    ),
    "per": (
        ("evaluate", "report", "TMP", "--cost-small", "1", "--cost-large", "2", "--cost-per", "x"),
        "prices are per pass or per token, got 'x'",
    ),
    "figures": (
        ("evaluate", "report", "TMP", "--gpu-figures", "TMP/own.py"),
        "holds no decoding passes of a small and a large model",
    ),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_an_error_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: Sequence[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / FILE_NAME).write_text("", encoding="utf-8")
    (tmp_path / "bad.py").write_text("class", encoding="utf-8")
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    own = [word.replace("TMP", str(tmp_path)) for word in words]
    status, out, err = ended(monkeypatch, capfd, *own)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    left = [path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts]
    assert sorted(left) == before


def test_a_task_of_ones_own_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    words = [*RUN[:6], "--task", f"{tmp_path}/own.py:Mine", "--out", str(tmp_path / "out")]
    status, _, err = ended(monkeypatch, capfd, *words)
    assert (status, err) == (2, "error: no problems at all\n")


def test_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path / "in")
    out = tmp_path / "out"
    words = ["evaluate", "report", str(tmp_path / "in"), "--out", str(out)]
    prices = ["--cost-small", "1", "--cost-large", "9", "--cost-per", "token"]
    status, shown, err = ended(monkeypatch, capfd, *words, *prices)
    assert (status, err) == (0, "")
    assert shown == f"report: {out}/report.html\nreport: {out}/report.md\n"
    markdown = (out / "report.md").read_text(encoding="utf-8")
    assert "Price: 1 a token of the small model, 9 of the large one" in markdown
