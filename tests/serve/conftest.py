"""One server for the tests that only ask it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serving import Running, running


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with running() as own:
        yield own
