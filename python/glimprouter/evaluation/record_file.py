"""The file of an evaluation: JSON lines, only ever appended, so that a kill loses little."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from glimprouter.evaluation.records import (
    ArmRecord,
    ProbedRecord,
    ProbeRecord,
    ProblemRecord,
    Record,
    SessionRecord,
    StepRecord,
    Unit,
    to_line,
    to_record,
)
from glimprouter.trace import json_fields

__all__ = ["FILE_NAME", "SCHEMA_VERSION", "RecordFile", "Records", "read_records"]

FILE_NAME = "records.jsonl"
SCHEMA_VERSION = 2
_KIND = "glimprouter.evaluation"
_OPEN_KINDS = ("step", "probe")  # a line of another kind must follow and close them


@dataclass
class Records:
    """All that a file holds.

    Attributes:
        path: Of the file.
        identity: What all its records have in common: pair, task, settings.
        size: Bytes up to the end of the last closed record.
        cut: Bytes behind them, of a record that a kill left unfinished.
        sessions, arms, problems, probes, probed: The records, in order.
        steps: Of each unit, in order.
    """

    path: Path
    identity: dict[str, Any]
    size: int = 0
    cut: int = 0
    sessions: list[SessionRecord] = field(default_factory=list)
    arms: list[ArmRecord] = field(default_factory=list)
    problems: dict[Unit, ProblemRecord] = field(default_factory=dict)
    steps: dict[Unit, list[StepRecord]] = field(default_factory=dict)
    probes: list[ProbeRecord] = field(default_factory=list)
    probed: dict[tuple[int, str], ProbedRecord] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Takes in what is closed: a step before its problem."""
        if isinstance(record, SessionRecord):
            self.sessions.append(record)
        elif isinstance(record, ArmRecord):
            if record not in self.arms:
                self.arms.append(record)
        elif isinstance(record, StepRecord):
            self.steps.setdefault(record.unit, []).append(record)
        elif isinstance(record, ProblemRecord):
            self.problems[record.unit] = record
        elif isinstance(record, ProbeRecord):
            self.probes.append(record)
        else:
            self.probed[record.seed, record.problem] = record


def read_records(path: Path) -> Records:
    """Reads a file, without what a kill left unfinished at its end.

    Args:
        path: Of the file, or of the folder that holds it.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        ValueError: It is empty, no evaluation, of another version, or damaged before its end; names
            the line.
    """
    path = path / FILE_NAME if path.is_dir() else path
    data = path.read_bytes()
    if not data.strip():
        raise ValueError(f"{path} is empty: no evaluation was written to it")
    lines = data.split(b"\n")
    records = Records(path, _header(path, lines[0], whole=len(lines) > 1))
    records.size = offset = len(lines[0]) + 1
    waiting: list[Record] = []
    for number, line in enumerate(lines[1:-1], start=2):  # behind the last newline nothing is whole
        offset += len(line) + 1
        where = f"{path}, line {number}"
        record = to_record(_parsed(line, where), where)
        waiting.append(record)
        if record.kind not in _OPEN_KINDS:
            _close(records, waiting, where)
            waiting = []
            records.size = offset
    records.cut = len(data) - records.size
    return records


def _header(path: Path, line: bytes, *, whole: bool) -> dict[str, Any]:
    if not whole:
        raise ValueError(f"{path} is cut short in its first line; remove it, nothing is in it")
    header = _parsed(line, f"{path}, line 1")
    if header.get("kind") != _KIND:
        raise ValueError(f"{path} holds no records of an evaluation (no kind {_KIND!r})")
    if header.get("schema_version") != SCHEMA_VERSION:
        version = json_fields.shown(header.get("schema_version"))
        raise ValueError(
            f"{path} has schema version {version}; this glimprouter reads {SCHEMA_VERSION};"
            " evaluate into another folder"
        )
    identity = header.get("identity")
    if not isinstance(identity, dict):
        raise ValueError(f"{path}, line 1: 'identity' must be an object")
    return identity


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json_fields.parse(line.decode("utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{where} is damaged: it is no JSON. Only the end of a file is ever cut by a kill;"
            " nothing was changed"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} is damaged: it is no JSON object; nothing was changed")
    return value


def _close(records: Records, group: list[Record], where: str) -> None:
    """Takes in a closing record with the open ones before it."""
    last = group[-1]
    if isinstance(last, ProblemRecord):
        fits = all(isinstance(r, StepRecord) and r.unit == last.unit for r in group[:-1])
        fits = fits and len(group) - 1 == last.steps and last.unit not in records.problems
    elif isinstance(last, ProbedRecord):
        key = (last.seed, last.problem)
        same = (isinstance(r, ProbeRecord) and (r.seed, r.problem) == key for r in group[:-1])
        fits = all(same) and key not in records.probed
    else:
        fits = len(group) == 1
    if not fits:
        raise ValueError(f"{where} does not fit the lines before it; nothing was changed")
    for record in group:
        records.add(record)


class RecordFile:
    """A file of records that is open for appending; a context manager.

    Attributes:
        records: What it holds, with what has been appended.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        """Opens or begins the file of a folder; an unfinished record at its end is cut off.

        Args:
            directory: Made where it does not exist.
            identity: Pair, task and settings of the records to come.

        Raises:
            OSError: It cannot be written.
            ValueError: The file is of another pair, task or settings, which is named, or damaged.
            RuntimeError: Another process writes to it.
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / FILE_NAME
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(self._file, path)
            if os.fstat(self._file).st_size == 0:
                self.records = Records(path, json.loads(json.dumps(identity)))
                header = {"kind": _KIND, "schema_version": SCHEMA_VERSION, "identity": identity}
                self._append([header])
            else:
                self.records = read_records(path)
                check_identity(self.records, identity)
                os.ftruncate(self._file, self.records.size)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> RecordFile:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the file."""
        os.close(self._file)

    def append(self, records: Iterable[Record]) -> None:
        """Writes records, of which the last closes the others, in one piece.

        Raises:
            OSError: The file cannot be written.
            ValueError: A value that no record can have; nothing is written.
        """
        group = list(records)
        lines = [to_line(record) for record in group]
        for line in lines:
            to_record(line, "a record that was to be written")  # or the file could not be read
        self._append(lines)
        for record in group:
            self.records.add(record)

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        data = memoryview(text.encode("ascii"))
        while data:
            data = data[os.write(self._file, data) :]


def check_identity(records: Records, identity: Mapping[str, Any]) -> None:
    """Checks that records are of this pair, task and settings.

    Raises:
        ValueError: They are not; names what differs.
    """
    ours: dict[str, Any] = json.loads(json.dumps(identity))
    theirs = records.identity
    for name in (*theirs, *ours):
        if ours.get(name) == theirs.get(name):
            continue
        what, now = _difference(name, theirs.get(name), ours.get(name))
        raise ValueError(
            f"{records.path} is of {what}, and this is {now}; give another folder, or the same"
            " settings. Nothing was changed"
        )


def _difference(name: str, theirs: Any, ours: Any) -> tuple[str, str]:
    if name == "pair":
        pairs = zip(("small", "large"), str(theirs).split(":"), str(ours).split(":"), strict=False)
        models = " and the ".join(each for each, a, b in pairs if a != b)
        return f"another pair (the {models} model differs)", "not that pair"
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in (*theirs, *ours):
            if theirs.get(key) != ours.get(key):
                return _difference(key, theirs.get(key), ours.get(key))
    return f"{name} = {json_fields.shown(theirs)}", json_fields.shown(ours)


def _lock(file: int, path: Path) -> None:
    """One process at a time; where the system has no such locks, nobody is stopped."""
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process writes to {path}") from None
