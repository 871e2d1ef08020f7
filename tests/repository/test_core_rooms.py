"""Rooms of the C++ core and of the kernels: an include never points back up, nor in a circle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PUBLIC = ROOT / "csrc" / "include" / "glimprouter"
# Each may include those before it, and the public headers of those.
CORE = ("base", "arithmetic", "kv", "cpu", "ops", "router", "loop", "device", "cuda")
KERNELS = ("base", "row", "select", "step", "kv", "attention", "layers")
# Where the concept of a public header lives.
HEADERS = {
    "base": {
        "device_lost",
        "device_stream",
        "drafted_rows",
        "host_device",
        "row_types",
        "row_view",
    },
    "kv": {
        "arena",
        "kv_cache",
        "kv_layout",
        "kv_views",
        "page_pool",
        "page_tables",
        "ragged_batch",
        "token_ledger",
        "vocabulary_map",
    },
    "ops": {"kv_ops", "row_op", "thread_pool"},
    "router": {"step_boundary", "step_columns", "step_outputs", "step_router", "step_types"},
    "device": {"arena_on", "steps_on"},
}
ROOM_OF_HEADER = {name: room for room, names in HEADERS.items() for name in names}
UMBRELLA = "glimprouter"


def includes(path: Path) -> Iterator[str]:
    """The project's own headers that a file includes."""
    yield from re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE)


def sources(folder: str) -> list[Path]:
    kinds = {".hpp", ".cpp", ".cu", ".cuh"}
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in kinds)


def core_room(include: str) -> str:
    """The room of an include of csrc: ``room/file``, ``glimprouter/[types/]file``."""
    folder, name = include.split("/")[0], include.split("/")[-1]
    return ROOM_OF_HEADER[name.removesuffix(".hpp")] if folder == "glimprouter" else folder


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "csrc").parts
    return ROOM_OF_HEADER[path.stem] if parts[0] == "include" else parts[0]


def test_every_public_header_has_a_room() -> None:
    assert {path.stem for path in PUBLIC.rglob("*.hpp")} - {UMBRELLA} == set(ROOM_OF_HEADER)


@pytest.mark.parametrize(
    "path",
    [path for path in sources("csrc") if path.stem != UMBRELLA],
    ids=lambda path: str(path.relative_to(ROOT / "csrc")),
)
def test_rooms_of_the_core_include_downwards_only(path: Path) -> None:
    room = room_of(path)
    for include in includes(path):
        if include.startswith("kernels/"):
            assert room == "cuda", f"{include}: only what launches kernels sees them"
            continue
        other = core_room(include)
        assert CORE.index(other) <= CORE.index(room), f"{room} includes {include} of {other}"


@pytest.mark.parametrize("path", sorted(PUBLIC.rglob("*.hpp")), ids=lambda path: path.name)
def test_public_headers_include_public_headers_only(path: Path) -> None:
    for include in includes(path):
        assert include.startswith("glimprouter/"), include


@pytest.mark.parametrize(
    "path", sources("kernels"), ids=lambda path: str(path.relative_to(ROOT / "kernels"))
)
def test_rooms_of_the_kernels_include_downwards_only(path: Path) -> None:
    room = path.relative_to(ROOT / "kernels").parts[0]
    for include in includes(path):
        if include.startswith("kernels/"):
            other = include.split("/")[1]
            assert KERNELS.index(other) <= KERNELS.index(room), f"{room} includes {include}"
        elif include.startswith("emulator/"):
            assert path.name in ("device.cuh", "launch.cuh"), f"{include}: for any compiler"
        else:
            assert core_room(include) != "cuda", include


@pytest.mark.parametrize("folder", ["csrc", "kernels", "emulator", "python/bindings"])
def test_the_product_includes_no_tests(folder: str) -> None:
    for path in sources(folder):
        for include in includes(path):
            assert not include.startswith(("tests/", "../")), f"{path}: {include}"
