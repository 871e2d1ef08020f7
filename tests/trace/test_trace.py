"""Traces: what is written comes back, whole or not at all, and a damaged file is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glimprouter as gr
from glimprouter import files
from glimprouter.trace import SCHEMA_VERSION

# Everything at which some reader of lines would cut: only "\n" outside of strings may.
SEPARATORS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
texts = st.text(max_size=20) | st.text(alphabet=SEPARATORS + 'a"\\🜁é\x00', max_size=12)
counts = st.integers(0, 2**31 - 1)
times = st.floats(0, 1e6)
thresholds = st.floats(0, 1e9) | st.just(math.inf)
writers = st.sampled_from(["small", "large"])

steps = st.builds(
    gr.TraceStep,
    index=counts,
    model=writers,
    entropy=st.none() | st.floats(0, 20),
    threshold=thresholds,
    text=texts,
    num_tokens=counts,
    seconds=times,
    end_reason=st.sampled_from(["delimiter", "interrupted"]),
)
traces = st.builds(
    gr.Trace,
    prompt=st.none() | texts,
    seed=st.integers(0, 2**64 - 1),
    substream=st.integers(0, 2**64 - 1),
    threshold=thresholds,
    think_limit=counts,
    steps=st.lists(steps, max_size=4),
    answer=texts,
    answer_model=writers,
    answer_tokens=counts,
    answer_seconds=times,
    total_tokens=counts,
    end_reason=texts,
    error=st.none() | texts,
)


def step(model: str, seconds: float, **fields: Any) -> gr.TraceStep:
    values = {
        "index": 0,
        "entropy": None,
        "threshold": 1.0,
        "text": "é\u2028🜁\n\n",
        "num_tokens": 3,
    }
    return gr.TraceStep(
        **{**values, "model": model, "seconds": seconds, "end_reason": "cap", **fields}
    )


def example() -> gr.Trace:
    """Every kind of line, characters of all lengths in UTF-8, and an infinite threshold."""
    written = [step("small", 0.5, threshold=math.inf), step("large", 0.25, entropy=1.5)]
    return gr.Trace(prompt="Why 🜁?", threshold=math.inf, steps=written, answer="só\u2029")


@settings(max_examples=200, deadline=None)
@given(traces)
def test_round_trip(trace: gr.Trace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.jsonl"
        trace.to_jsonl(path)
        assert gr.Trace.from_jsonl(path) == trace
        assert gr.Trace.from_jsonl(str(path)) == trace
        assert os.listdir(directory) == [path.name]


def test_each_line_is_json_that_other_tools_read(tmp_path: Path) -> None:
    """No bare infinity, one object a line, the version in the first."""
    example().to_jsonl(tmp_path / "trace.jsonl")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "trace.jsonl").read_bytes().split(b"\n")
    records = [json.loads(line, parse_constant=refuse) for line in lines[:-1]]
    assert lines[-1] == b""
    kinds = ["glimprouter.trace", "step", "step", "end"]
    assert [record["kind"] for record in records] == kinds
    assert records[0]["schema_version"] == SCHEMA_VERSION
    assert records[0]["threshold"] == records[1]["threshold"] == "inf"


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """Cut at every byte: in the middle of lines and of characters, and after every line."""
    path = tmp_path / "trace.jsonl"
    example().to_jsonl(path)
    data = path.read_bytes()
    assert data.count(b"\n") == 4
    for length in range(len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"trace\.jsonl"):
            gr.Trace.from_jsonl(path)
    path.write_bytes(data[:-1])  # without the last newline nothing is missing
    assert gr.Trace.from_jsonl(path) == example()


def test_every_lost_or_repeated_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    example().to_jsonl(path)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    for index in range(len(lines)):
        for changed in (
            lines[:index] + lines[index + 1 :],
            lines[: index + 1] + lines[index:],
        ):
            path.write_text("\n".join(changed) + "\n", encoding="utf-8")
            with pytest.raises(ValueError, match=r"trace\.jsonl"):
                gr.Trace.from_jsonl(path)


def edited(path: Path, line: int, **changes: Any) -> None:
    """Writes the example with some fields of one line changed; None of a field removes it."""
    example().to_jsonl(path)
    records = [json.loads(text) for text in path.read_text(encoding="utf-8").split("\n")[:-1]]
    records[line].update(changes)
    kept = {name: value for name, value in records[line].items() if value != "REMOVED"}
    records[line] = kept
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


EDITS: dict[str, tuple[int, dict[str, Any], str]] = {
    "newer version": (0, {"schema_version": 5}, "schema version 5; .* reads 2 to 4"),
    "no version": (0, {"schema_version": "REMOVED"}, "schema version None"),
    "version as text": (0, {"schema_version": "1"}, "schema version '1'"),
    "foreign header": (0, {"kind": "other.trace"}, "not a glimprouter trace"),
    "header without prompt": (0, {"prompt": "REMOVED"}, "lacks 'prompt'"),
    "unknown field": (0, {"colour": "red"}, "unexpected keyword argument 'colour'"),
    "foreign step": (1, {"kind": "event"}, "no step"),
    "step without text": (2, {"text": "REMOVED"}, "missing.*'text'"),
    "wrong count": (3, {"num_steps": 3}, "counts other steps"),
    "end without answer": (3, {"answer": "REMOVED"}, "lacks 'answer'"),
}


@pytest.mark.parametrize(("line", "changes", "message"), EDITS.values(), ids=EDITS)
def test_edited_files_are_refused(
    tmp_path: Path, line: int, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "trace.jsonl"
    edited(path, line)
    assert gr.Trace.from_jsonl(path) == example(), "the edit itself must not matter"
    edited(path, line, **changes)
    with pytest.raises(ValueError, match=message):
        gr.Trace.from_jsonl(path)


@pytest.mark.parametrize("where", ["write_bytes", "replace"])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, fault: Any
) -> None:
    path = tmp_path / "trace.jsonl"
    old = dataclasses.replace(example(), answer="old")
    old.to_jsonl(path)

    def half_written(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise fault

    def refused(source: Any, target: Any) -> None:
        raise fault

    if where == "replace":
        monkeypatch.setattr(files.os, "replace", refused)
    else:
        monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(type(fault) if isinstance(fault, OSError) else fault):
        example().to_jsonl(path)
    monkeypatch.undo()
    assert gr.Trace.from_jsonl(path) == old
    assert os.listdir(tmp_path) == [path.name]


def test_a_lone_surrogate_is_an_error_that_leaves_the_old_file(tmp_path: Path) -> None:
    """No tokenizer writes one, and no prompt with one is accepted; UTF-8 cannot hold it."""
    path = tmp_path / "trace.jsonl"
    example().to_jsonl(path)
    with pytest.raises(UnicodeEncodeError, match="surrogates"):
        gr.Trace(prompt="\ud800").to_jsonl(path)
    assert gr.Trace.from_jsonl(path) == example()


def test_no_file_where_none_can_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        example().to_jsonl(tmp_path / "missing" / "trace.jsonl")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        example().to_jsonl(tmp_path)
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r"never\.jsonl"):
        gr.Trace.from_jsonl(tmp_path / "never.jsonl")


def test_a_link_is_followed_and_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    """As ``/dev/stdout`` may be either."""
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "target.jsonl")
    example().to_jsonl(tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert gr.Trace.from_jsonl(tmp_path / "target.jsonl") == example()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    try:
        example().to_jsonl(tmp_path / "pipe")
        assert (tmp_path / "pipe").is_fifo()
        assert os.read(reader, 1 << 16) == (tmp_path / "target.jsonl").read_bytes()
    finally:
        os.close(reader)


def test_the_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    example().to_jsonl(tmp_path / "trace.jsonl")
    modes = [(tmp_path / name).stat().st_mode for name in ("ordinary", "trace.jsonl")]
    assert modes[0] == modes[1]


def test_totals() -> None:
    trace = gr.Trace(
        steps=[step("small", 0.5), step("large", 0.25), step("small", 0.125), step("small", 1.0)],
        answer_seconds=2.0,
    )
    assert trace.large_step_share == 0.25
    assert trace.seconds == 3.875
    assert gr.Trace().large_step_share == 0.0
    assert gr.Trace().seconds == 0.0
