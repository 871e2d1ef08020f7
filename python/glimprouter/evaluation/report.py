"""The report of evaluations: one page of HTML that stands alone, and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from glimprouter.evaluation.document import Block, Document, Figure, Heading, Paragraph, Table
from glimprouter.evaluation.prices import Prices, prices_of_weights
from glimprouter.evaluation.record_file import Records, read_records
from glimprouter.evaluation.records import SessionRecord
from glimprouter.evaluation.report_html import to_html
from glimprouter.evaluation.report_markdown import to_markdown
from glimprouter.evaluation.sections_arms import arm_sections
from glimprouter.evaluation.sections_signals import signal_sections
from glimprouter.evaluation.sections_systems import system_sections
from glimprouter.files import write_atomically

__all__ = ["write_report"]

WHERE = ("engine", "execution", "device")
SAMPLING = ("temperature", "top_p", "top_k", "min_p")


def write_report(
    directories: Sequence[Path], out: Path | None = None, *, prices: Prices | None = None
) -> tuple[Path, Path]:
    """Writes ``report.html`` and ``report.md`` (with its folder ``figures``).

    Args:
        directories: Of evaluations, in the order of the report; each becomes a part of it.
        out: Folder of the report; None for the first of them.
        prices: Of both models (default: a pass costs the weights that it reads).

    Returns:
        Both paths, HTML first.

    Raises:
        FileNotFoundError: A folder holds no records.
        OSError: A file cannot be read or written.
        ValueError: No folders, or records that are empty or damaged.
    """
    if not directories:
        raise ValueError("a report needs at least one folder of an evaluation")
    every = [read_records(directory) for directory in directories]
    if found := next((records for records in every if not records.problems), None):
        raise ValueError(f"{found.path} holds no solved problem yet; run the evaluation first")
    documents = [Document(_title(records), list(_blocks(records, prices))) for records in every]
    whole = documents[0]
    if len(documents) > 1:
        whole = Document("Does routing pay?")
        for place, document in enumerate(documents, start=1):
            whole.blocks.append(Heading(f"{place}. {document.title}"))
            whole.blocks += _renamed(document.blocks, f"{place}-")
    return _write(whole, out or directories[0])


def _write(document: Document, out: Path) -> tuple[Path, Path]:
    pictures = out / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    for block in document.blocks:
        if isinstance(block, Figure):
            write_atomically(pictures / f"{block.name}.svg", block.svg)
    paths = out / "report.html", out / "report.md"
    write_atomically(paths[0], to_html(document))
    write_atomically(paths[1], to_markdown(document, "figures"))
    return paths


def _title(records: Records) -> str:
    return f"Does routing pay? Task {records.identity['task']}"


def _renamed(blocks: Sequence[Block], prefix: str) -> Iterator[Block]:
    """Blocks of one part among several: its headings go down, its pictures have own names."""
    for block in blocks:
        if isinstance(block, Figure):
            yield Figure(f"{prefix}{block.name}", block.svg, block.caption)
        elif isinstance(block, Heading):
            yield Heading(block.text, min(block.level + 1, 4))
        else:
            yield block


def _blocks(records: Records, prices: Prices | None) -> Iterator[Block]:
    yield from _setting(records)
    yield from arm_sections(records, prices or prices_of_weights(records.identity["weights"]))
    yield from system_sections(records)
    yield from signal_sections(records)


def _setting(records: Records) -> Iterator[Block]:
    identity = records.identity
    plan, config = identity["plan"], identity["config"]
    weights = "not shown by engines"
    if identity["weights"] is not None:
        weights = " and ".join(f"{identity['weights'][name]:,}" for name in ("small", "large"))
    yield Paragraph(
        f"{plan['problems']} report problems and {plan['development_problems']} development"
        f" problems of the task {identity['task']}, which share none; thresholds are chosen on the"
        " latter only. Every figure names its number of problems; intervals are 95 % and take"
        " problems as independent."
    )
    rows = [
        ["weights", weights],
        ["fingerprint of the pair", identity["pair"]],
        ["dtypes", ", ".join(f"{name}: {kind}" for name, kind in identity["dtypes"].items())],
        [
            "engine, execution, device",
            ", ".join(identity[k] for k in ("engine", "execution", "device")),
        ],
        ["drafts", str(identity["drafts"])],
        [
            "sampling",
            ", ".join(f"{name} {config[name]:g}" for name in SAMPLING),
        ],
        ["answers of routed runs", f"by the {config['answer_model']} model"],
        ["batch", str(plan["batch"])],
    ]
    for session in records.sessions:
        machine = session.machine
        commit = session.commit or "not from a repository"
        cores = machine.get("logical_processors")
        load = machine.get("load_average_1_minute")
        version = machine.get("glimprouter", {}).get("version")
        engines = "".join(
            f"; {name} engine: {what}" for name, what in machine.get("engines", {}).items()
        )
        rows.append(
            [
                f"run begun {session.started}",
                f"{machine.get('processor')}, {cores} logical processors, load {load}; glimprouter"
                f" {version} ({commit}), torch {machine.get('torch')}{engines}",
            ]
        )
    yield Table(["setting", "value"], rows, "What was run, and where.", frozenset({1}))
    processors = {session.machine.get("processor") for session in records.sessions}
    if len(processors) > 1:
        yield Paragraph("Several machines took part: seconds of different arms do not compare.")
    if any(_busy(session) for session in records.sessions):
        yield Paragraph(
            "The machine had other work: its load was above its number of processors. Seconds below"
            " mean little; read passes, tokens and prices."
        )
    if records.cut:
        yield Paragraph(
            f"The file ends within a record ({records.cut} bytes): the evaluation was stopped, or"
            " still runs. What is whole is reported."
        )


def _busy(session: SessionRecord) -> bool:
    load = session.machine.get("load_average_1_minute")
    cores = session.machine.get("logical_processors")
    return load is not None and cores is not None and load > cores
