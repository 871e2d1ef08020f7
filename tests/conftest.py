"""Both engines pass the same tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hf_pairs import ENGINE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs the tests of pairs once with each engine."""
    name = metafunc.module.__name__
    if name.startswith("test_hf_") and name not in ("test_hf_paged", "test_hf_text"):
        metafunc.fixturenames.append("engine_under_test")
        metafunc.parametrize("engine_under_test", ["gather", "paged"], indirect=True)


@pytest.fixture
def engine_under_test(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine that `Pair.routed` chooses."""
    token = ENGINE.set(request.param)
    yield request.param
    ENGINE.reset(token)
