"""Engines of vLLM, started once for all tests: each start takes half a minute of a core."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from glimprouter import demo_pair
from glimprouter.vllm import RoutedEngines, gated_engine
from hf_pairs import trained_pair
from vllm_servers import ENGINE_OPTIONS, GatedServer, set_environment


@pytest.fixture(scope="session")
def engines() -> Iterator[RoutedEngines]:
    """The shipped pair on two engines of this process."""
    pytest.importorskip("vllm")
    set_environment()
    made = [
        gated_engine(path, **ENGINE_OPTIONS, disable_log_stats=True)
        for path in (demo_pair.small_path(), demo_pair.large_path())
    ]
    client = RoutedEngines(*made, trained_pair().tokenizer)
    yield client
    client.close()
    for engine in made:
        engine.shutdown()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, GatedServer]]:
    """The shipped pair on two servers."""
    pytest.importorskip("vllm")
    folder: Path = tmp_path_factory.mktemp("servers")
    paths = {"small": demo_pair.small_path(), "large": demo_pair.large_path()}
    made = {name: GatedServer(path, folder / f"{name}.log") for name, path in paths.items()}
    try:
        for server in made.values():
            server.wait()
        yield made
    finally:
        for server in made.values():
            server.kill()
