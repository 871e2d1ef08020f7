"""`glimprouter trace`: what the terminal shows, where the page goes, and one line for an error."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from glimprouter.cli import main as cli
from glimprouter.visible_text import neutralise
from trace_pages import parsed, run_facts, words
from trace_samples import client_records, step, trace, write_json


def ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str
) -> tuple[Any, str, str]:
    """Exit status, stdout and stderr of ``glimprouter trace`` in this process."""
    monkeypatch.setattr(sys, "argv", ["glimprouter", "trace", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    status: Any
    try:
        status = cli.main()
    except SystemExit as error:
        status = error.code
    return (status, *capfd.readouterr())


def test_trace_on_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trace(3).to_jsonl(tmp_path / "t.jsonl")
    status, out, err = ended(monkeypatch, capfd, str(tmp_path / "t.jsonl"), "--plain")
    assert (status, err) == (0, "")
    assert out == (
        "Why?\n"
        "step  writer  H (nats)  tokens       ms  text\n"
        "   0  small      0.250      10     10.0  Step number 0.\n"
        "   1  small      0.250      11     10.0  Step number 1.\n"
        "   2  large      1.500      12     10.0  Step number 2.\n"
        "\nanswer\nBecause.\n\n"
        "                steps    share  tokens    share  seconds\n"
        "small               2   66.7 %      21   63.6 %     0.02\n"
        "large               1   33.3 %      12   36.4 %     0.01\n"
        "thinking            3  100.0 %      33  100.0 %     0.03\n"
        "answer (large)                       5              0.50\n"
        "41 tokens in 0.53 s; ended by: eos; tau = 1 nats, seed 7\n"
    )


def test_a_result_of_the_published_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, page = write_json(tmp_path / "0.json", client_records()), tmp_path / "page.html"
    status, out, err = ended(monkeypatch, capfd, str(path), "--html", str(page))
    assert (status, err) == (0, f"html: {page}\n")
    assert "   1  large      1.250       9        -  Then x² = 16.\n" in out
    assert "26 tokens; ended by: finished\n" in out
    assert "The routes fit 0.750 < tau <= 1.250.\n" in out
    root = parsed(page.read_text(encoding="utf-8"))
    assert run_facts(root) == {"ended by": "finished", "tau, seed, limits": "not recorded"}
    assert "From the published client's file" in words(root)
    assert sorted(os.listdir(tmp_path)) == ["0.json", "page.html"]


def test_nothing_commands_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = "\x1b[2J\x9b31m\r\u202e"
    chain = trace(steps=[step(0, text=bad)], prompt=bad, answer=bad, end_reason=bad, error=bad)
    chain.to_jsonl(tmp_path / "t.jsonl")
    status, out, _ = ended(monkeypatch, capfd, str(tmp_path / "t.jsonl"))
    assert status == 0
    assert out == neutralise(out)
    assert out.count("\u241b[2J") == 5


@pytest.mark.parametrize("fields", [{"steps": []}, {"threshold": math.inf}, {"end_reason": "none"}])
def test_odd_traces_print(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fields: dict[str, Any],
) -> None:
    dataclasses.replace(trace(), **fields).to_jsonl(tmp_path / "t.jsonl")
    status, _, err = ended(monkeypatch, capfd, str(tmp_path / "t.jsonl"))
    assert (status, err) == (0, "")


BAD_CALLS: dict[str, tuple[Sequence[str], str]] = {
    "missing": (("TMP/none.jsonl",), "cannot read the trace .*none.jsonl: No such file"),
    "directory": (("TMP",), "cannot read the trace .*: Is a directory"),
    "binary": (("TMP/binary",), "binary is not a glimprouter trace .not UTF-8 text"),
    "empty": (("TMP/empty",), "empty is empty; expected a trace of glimprouter .* or a result"),
    "prose": (("TMP/prose",), "prose begins with 'H'; expected a trace of glimprouter"),
    "foreign lines": (("TMP/foreign.jsonl",), "foreign.jsonl is not a glimprouter trace"),
    "foreign list": (("TMP/foreign.json",), "object 0 lacks 'step_id'; expected a JSON list"),
    "cut trace": (("TMP/cut.jsonl",), "cut.jsonl is not a glimprouter trace, or is cut short"),
    "no end": (("TMP/no_end.jsonl",), "no_end.jsonl is cut short: its end line is missing"),
    "cut result": (("TMP/cut.json",), "cut.json is no result of the published client, or is cut"),
    "odd writer": (("TMP/odd.jsonl",), 'line 2, \'model\' must be "small" or "large"'),
    "page nowhere": (("TMP/t.jsonl", "--html", "TMP/none/p.html"), "a file in a directory that"),
    "page a directory": (("TMP/t.jsonl", "--html", "TMP"), "--html .*: give a file in a directory"),
    "page over trace": (("TMP/t.jsonl", "--html", "TMP/./t.jsonl"), "this is the trace itself"),
    "two faults": (("TMP/cut.jsonl", "--html", "TMP/p.html"), "is cut short"),
}


def damaged_files(directory: Path) -> None:
    trace().to_jsonl(directory / "t.jsonl")
    text = (directory / "t.jsonl").read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    write_json(directory / "foreign.json", [{"role": "user", "content": "Why?"}])
    results = json.dumps(client_records())
    contents = {
        "empty": "",
        "prose": "He counted.",
        "foreign.jsonl": '{"role": "user"}\n',
        "cut.jsonl": text[: len(text) // 2],
        "no_end.jsonl": "".join(lines[:-1]),
        "cut.json": results[: len(results) // 2],
        "odd.jsonl": text.replace('"model": "small"', '"model": "tiny"', 1),
    }
    for name, content in contents.items():
        (directory / name).write_text(content, encoding="utf-8")
    (directory / "binary").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_an_error_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    message: str,
) -> None:
    damaged_files(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    given_words = [word.replace("TMP", str(tmp_path)) for word in arguments]
    status, out, err = ended(monkeypatch, capfd, *given_words)
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: .*{message}.*\n", err), err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
