"""Reading the files of public data sets from disk: JSON lines, JSON, CSV and Parquet."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]


def read_records(path: str | Path) -> list[Record]:
    """All records of a file, by its ending.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: An unknown ending, a line that is no JSON object, or no record at all.
        ImportError: A Parquet file without pyarrow.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise ValueError(f"{path} must end in one of {', '.join(readers)}")
    records = list(readers[path.suffix](path))
    if not records:
        raise ValueError(f"{path} holds no records")
    return records


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
            yield _checked(record, f"{path}, line {number}")


def _json(path: Path) -> Iterator[Record]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(records, list):
        raise ValueError(f"{path} must hold a list of objects, got {type(records).__name__}")
    for number, record in enumerate(records, 1):
        yield _checked(record, f"{path}, record {number}")


def _checked(record: Any, where: str) -> Record:
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(record).__name__}")
    return record


def _csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines)


def _parquet(path: Path) -> Iterator[Record]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ImportError(
            f"reading {path} needs pyarrow: pip install pyarrow, or give the data as JSON lines"
        ) from None
    yield from parquet.read_table(path).to_pylist()


def field(record: Record, names: tuple[str, ...], where: str) -> str:
    """The first of several fields that the record has, as text.

    Raises:
        ValueError: It has none of them, or an empty one.
    """
    for name in names:
        if record.get(name) is not None and str(record[name]).strip():
            return str(record[name]).strip()
    has = ", ".join(map(str, record)) or "none"
    raise ValueError(f"{where} must have a field {' or '.join(map(repr, names))}; it has: {has}")
