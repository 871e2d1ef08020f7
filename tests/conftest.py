"""Which tests run on this build, and with which engines: by their markers (pyproject.toml)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Models here are tiny, and tests run side by side, some in processes of their own: a second thread
# only waits for its turn. Before anything imports torch.
os.environ["OMP_NUM_THREADS"] = "1"

import glimprouter as gr
import shared_trials
from glimprouter.hf.attention import layers
from glimprouter.hf.engine import choice
from hf_pairs import ENGINE

# The emulator takes some milliseconds a row.
EMULATED_VOCABULARY = 5001


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs the tests of pairs once with each engine, or with those that the marker names."""
    if (marker := metafunc.definition.get_closest_marker("both_engines")) is not None:
        engines = marker.args or ("gather", "paged")
        metafunc.parametrize("engine_under_test", engines, indirect=True)


def _cannot_run(item: pytest.Item) -> bool:
    """What the item needs is not there, or would take hours where every row is emulated."""
    build = gr.build_info()
    if item.get_closest_marker("gpu") and "cuda:0" not in build["devices"]:
        return True
    if item.get_closest_marker("needs_device") and len(build["devices"]) == 1:
        return True
    if build["instruction_set"] != "simt":
        return False
    arguments = getattr(getattr(item, "callspec", None), "params", {})
    return bool(
        item.get_closest_marker("many_rows") or arguments.get("vocabulary", 0) > EMULATED_VOCABULARY
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what cannot run here (docs/device-testing.md)."""
    kept, left_out = [], []
    for item in items:
        (left_out if _cannot_run(item) else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture
def pages_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pages, so that short sequences fill several and run short of them."""
    monkeypatch.setattr(layers, "PAGE_SIZE", 16)


@pytest.fixture(autouse=True)
def engine_under_test(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine that `Pair.routed` chooses. Autouse, so that every test of pairs depends on it."""
    token = ENGINE.set(getattr(request, "param", ENGINE.get()))
    yield ENGINE.get()
    ENGINE.reset(token)


@pytest.fixture(autouse=True, scope="session")
def trials_of_shared_models() -> Iterator[None]:
    """Models that tests share compute what they are compared with once, not for every pair."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "trial_of", shared_trials.trial_of)
        yield
