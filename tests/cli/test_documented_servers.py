"""The compose file and the commands beside it: options that exist, ports and keys that meet."""

from __future__ import annotations

import re

import pytest
from typer.main import get_command

from glimprouter.cli.app import app
from vllm_commands import COMPOSE, composed, documented

SERVICES = COMPOSE["services"]
SERVE = [*documented("glimprouter serve"), *composed("glimprouter serve").values()]


@pytest.mark.parametrize("words", SERVE, ids=" ".join)
def test_options_are_those_of_the_command(words: list[str]) -> None:
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    options = serve.make_context("serve", list(words)).params
    assert options["small_url"].endswith(":8001")
    assert options["large_url"].endswith(":8002")


def test_both_servers_are_documented() -> None:
    """One GPU, four, and four on two nodes."""
    assert len(documented("vllm serve")) == 4
    assert set(composed("vllm serve")) == {"small", "large"}
    assert all("glimprouter.vllm:GlimpGate" in " ".join(w) for w in documented("vllm serve"))


def test_services_find_each_other() -> None:
    """Each is asked at the port that it listens to, and GPUs have one user each."""
    router = " ".join(composed("glimprouter serve")["router"])
    devices: list[str] = []
    for name, words in composed("vllm serve").items():
        (port,) = (word.partition("=")[2] for word in words if word.startswith("--port="))
        assert f"http://{name}:{port}" in router
        assert f"localhost:{port}/health" in SERVICES[name]["healthcheck"]["test"][-1]
        assert SERVICES["router"]["depends_on"][name]["condition"] == "service_healthy"
        (own,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        devices += own["device_ids"]
        size = re.search(r"--tensor-parallel-size=(\d+)", " ".join(words))
        assert len(own["device_ids"]) == (int(size[1]) if size else 1)
        key = SERVICES[name]["environment"]["VLLM_API_KEY"]
        assert key.startswith("${ENGINE_API_KEY")
    assert len(devices) == len(set(devices))
    assert SERVICES["router"]["environment"]["GLIMPROUTER_ENGINE_API_KEY"] == "${ENGINE_API_KEY}"
