"""A process that is killed in the middle: the same call goes on, and little is lost."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from cli_runs import PAIR, command, run
from evaluation_records import lines_of
from glimprouter.evaluation import read_records
from glimprouter.evaluation.record_file import FILE_NAME

BATCH = 3
WORDS = (
    *("evaluate", "run", *PAIR, "--task", "list_reduction", "--policy", "entropy:threshold=0.5"),
    *("--problems", "9", "--development-problems", "2", "--seeds", "1", "--batch", str(BATCH)),
    *("--probe-problems", "2", "--probe-steps", "1", "--threads", "1", "--plain"),
    *("--dtype", "float32"),
    *("--max-step-tokens", "64", "--max-think-tokens", "320", "--max-answer-tokens", "16"),
)


def solved(path: Path) -> list[tuple[str, str]]:
    kinds = [line for line in lines_of(path) if line["kind"] == "problem"]
    return [(line["arm"], line["problem"]) for line in kinds]


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out" / FILE_NAME
    words = (*WORDS, "--out", str(path.parent))
    process = subprocess.Popen(
        command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None:  # until it is in the middle of solving
        if path.exists() and path.read_bytes().count(b'"kind": "problem"') > BATCH:
            break
        time.sleep(0.01)
    assert process.poll() is None, f"it ended by itself: {process.communicate()[1]}"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = path.read_bytes()
    before = solved(path) if killed.endswith(b"\n") else []
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"records: {path}\n"
    after = solved(path)
    assert after[: len(before)] == before, "what was whole stays"
    assert len(after) == len(set(after)) == 3 * 9, "each problem of each arm once"
    records = read_records(path)
    assert len(records.sessions) == 2
    assert len(records.probed) == 2

    other = tmp_path / "other"
    done = run(*WORDS, "--out", str(other))
    assert done.returncode == 0, done.stderr
    same = read_records(other)
    texts = [[s.text for s in own] for own in (same.steps[unit] for unit in same.problems)]
    again = [[s.text for s in own] for own in (records.steps[unit] for unit in same.problems)]
    turned = sum(a != b for a, b in zip(texts, again, strict=True))
    assert turned <= 2, "rounding of other batches may turn a token"

    report = run("evaluate", "report", str(other), str(path.parent), "--out", str(tmp_path))
    assert report.returncode == 0, report.stderr
    assert report.stdout == f"report: {tmp_path}/report.html\nreport: {tmp_path}/report.md\n"
