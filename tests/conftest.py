"""Both engines pass the same tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import glimprouter as gr
from glimprouter.hf import paged_attention
from hf_pairs import ENGINE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs the tests of pairs once with each engine."""
    name = metafunc.module.__name__
    if name.startswith("test_hf_") and name not in ("test_hf_paged", "test_hf_text"):
        metafunc.parametrize("engine_under_test", ["gather", "paged"], indirect=True)


# These need a GPU: benchmarks/gpu_suite.sh runs them where there is one.
collect_ignore = [] if "cuda:0" in gr.build_info()["devices"] else ["gpu"]
# These need a device, which may be the shim: .ci/simt_tests.
if len(gr.build_info()["devices"]) == 1:
    collect_ignore += ["test_device_pair.py", "test_device_decode.py", "test_device_graphs.py"]

# The host SIMT shim takes some milliseconds a row.
SHIM_VOCABULARY = 5001
SHIM_MANY_ROWS = ("frequencies", "draws_differ", "every_16_bit_pattern")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what would take hours where the shim runs every row (docs/device-testing.md)."""
    if gr.build_info()["instruction_set"] != "simt":
        return
    kept, left_out = [], []
    for item in items:
        arguments = getattr(getattr(item, "callspec", None), "params", {})
        slow = arguments.get("vocabulary", 0) > SHIM_VOCABULARY
        slow = slow or any(name in item.name for name in SHIM_MANY_ROWS)
        (left_out if slow else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture
def pages_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pages, so that short sequences fill several and run short of them."""
    monkeypatch.setattr(paged_attention, "PAGE_SIZE", 16)


@pytest.fixture(autouse=True)
def engine_under_test(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine that `Pair.routed` chooses. Autouse, so that every test of pairs depends on it."""
    token = ENGINE.set(getattr(request, "param", ENGINE.get()))
    yield ENGINE.get()
    ENGINE.reset(token)
