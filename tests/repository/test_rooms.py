"""The packages build on one another in one direction: an import never points back up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "python" / "glimprouter"
# Each may import those before it.
ROOMS = (
    "pair",
    "sequence",
    "trial",
    "state",
    "attention",
    "decoder",
    "graphs",
    "engine",
    "run",
    "model",
    "single",
)
FILES = sorted(PACKAGE.rglob("*.py"))
ENGINE = [path for path in FILES if path.is_relative_to(PACKAGE / "hf")]


def imported(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that a file imports when it is imported itself, with the statement."""
    body = list(ast.parse(path.read_text()).body)
    while body:
        statement = body.pop()
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield alias.name, statement
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{path}: imports are absolute"
            for alias in statement.names:
                yield f"{statement.module}.{alias.name}", statement
        elif isinstance(statement, ast.Try):
            body += statement.body


def room_of(parts: tuple[str, ...]) -> str | None:
    """The room of ``("hf", ...)``; None for what lies outside, and for the face of ``hf``."""
    named = [part for part in parts[1:2] if part in ROOMS]
    return named[0] if parts[0] == "hf" and named else None


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_of_the_engine_import_downwards_only(path: Path) -> None:
    room = room_of(path.relative_to(PACKAGE).with_suffix("").parts)
    if room is None:
        assert path == PACKAGE / "hf" / "__init__.py"
        return
    for name, statement in imported(path):
        parts = tuple(name.split(".")[1:])
        if name.startswith("glimprouter.hf"):
            other = room_of(parts)
            assert other is not None, f"line {statement.lineno}: name the module of {name}"
            assert ROOMS.index(other) <= ROOMS.index(room), f"line {statement.lineno}: {name}"


SERVER_PACKAGES = ("fastapi", "starlette", "uvicorn", "h11", "pydantic", "prometheus_client")


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.relative_to(PACKAGE).parts[0] != "serve"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_only_the_server_needs_what_serves(path: Path) -> None:
    """The other commands do without the extra "serve"."""
    for name, statement in imported(path):
        serves = name.split(".")[0] in SERVER_PACKAGES or name.startswith("glimprouter.serve")
        assert not serves, f"line {statement.lineno}: {name}"


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.relative_to(PACKAGE).parts[0] not in ("hf", "torch", "vllm")],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_what_needs_no_torch_imports_none(path: Path) -> None:
    for name, statement in imported(path):
        heavy = name.split(".")[0] in ("torch", "transformers")
        heavy = heavy or name.startswith(("glimprouter.hf", "glimprouter.torch"))
        assert not heavy, f"line {statement.lineno}: {name}"


VLLM = sorted((PACKAGE / "vllm").rglob("*.py"))
GATE = ("protocol.py", "__init__.py")  # what an engine imports beside the gate's own folder


@pytest.mark.parametrize("path", VLLM, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_client_needs_no_vllm_and_the_gate_no_client(path: Path) -> None:
    """An engine's processes import the gate, a client's do without vLLM."""
    in_gate = path.parent.name == "gate" or path.name in GATE
    for name, statement in imported(path):
        if path.name != "processor.py":
            assert name.split(".")[0] != "vllm", f"line {statement.lineno}: {name}"
        if in_gate:
            client = name.startswith("glimprouter.hf") or ".engines" in name
            assert not client, f"line {statement.lineno}: {name}"
