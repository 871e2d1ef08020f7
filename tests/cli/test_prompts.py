"""Prompts of both commands: a line each, or JSON lines."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from glimprouter.cli.errors import UserError
from glimprouter.cli.generate import trace_paths
from glimprouter.cli.options import bytes_of
from glimprouter.cli.prompts import one_or_file, read_prompts

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one\ntwo"}]


def test_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "first\n\n  second \u2028 line \nthird"
    (tmp_path / "prompts.txt").write_text(text, encoding="utf-8")
    wanted = ["first", "second \u2028 line", "third"]
    assert read_prompts(tmp_path / "prompts.txt") == wanted
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert read_prompts(Path("-")) == wanted


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\ufefffirst", encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text('\ufeff"first"', encoding="utf-8")
    for name in ("prompts.txt", "prompts.jsonl"):
        assert read_prompts(tmp_path / name) == ["first"]


def test_json_lines(tmp_path: Path) -> None:
    lines = ["several\nlines", CHAT, {"messages": CHAT, "id": 3}, {"prompt": "text"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read_prompts(path) == ["several\nlines", CHAT, CHAT, "text"]
    assert one_or_file(None, path) == read_prompts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no JSON"),
        ("7", "line 2: a prompt is a string with some text, or a list of messages"),
        ('" "', "line 2: a prompt is a string"),
        ("[]", "line 2: a prompt is a string"),
        ('["a"]', "line 2: a prompt is a string"),
        ('{"text": "a"}', r"line 2: an object needs exactly one of .* got \['text'\]"),
        ('{"prompt": "a", "messages": []}', "line 2: an object needs exactly one of"),
        ("[" * 100_000, "line 2 is no JSON"),
    ],
)
def test_a_line_that_is_no_prompt(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'"fine"\n{line}\n', encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_prompts(path)


def test_traces_of_several_prompts_have_numbers(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    assert trace_paths(None, 2) == [None, None]
    assert trace_paths(path, 1) == [path]
    assert trace_paths(path, 2) == [tmp_path / "trace.0.jsonl", tmp_path / "trace.1.jsonl"]


@pytest.mark.parametrize(
    ("text", "count"),
    [("1048576", 1 << 20), ("8GiB", 8 << 30), ("1.5 kb", 1500), ("2TB", 2 * 10**12), (None, None)],
)
def test_sizes(text: str | None, count: int | None) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize(
    "text", ["", "-1", "GiB", "8GX", "0.1B", "1e9", "8 GiB of it", "9" * 400 + "GiB"]
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--kv-memory must be a size such as"):
        bytes_of(text)
