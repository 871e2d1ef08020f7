"""Other names that lead to this machine are not answered."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from glimprouter.serve.hosts import hosts_of
from serving import Running, running

OWN = ("localhost", "localhost:80", "127.0.0.1:1", "[::1]:8000", "[::1]", "LocalHost.")
OTHERS = (
    "evil.example",
    "evil.example:80",
    "localhost.evil.example",
    "127.0.0.1.evil",
    "",
    "[::2]",
)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    with running(allowed_hosts=hosts_of("127.0.0.1", None, ())) as own:
        yield own


@pytest.mark.parametrize("path", ["/", "/live", "/v1/models", "/metrics", "/health"])
def test_names_of_this_machine_only(guarded: Running, path: str) -> None:
    for name in OWN:
        assert httpx.head(guarded.url + path, headers={"Host": name}).status_code == 200
    for name in OTHERS:
        answer = httpx.get(guarded.url + path, headers={"Host": name})
        assert answer.status_code == 421
        assert answer.json()["error"]["code"] == "unknown_host"


def test_no_redirect_to_a_name_that_was_sent(guarded: Running) -> None:
    assert httpx.get(f"{guarded.url}/v1/models/../health/").status_code == 404


@pytest.mark.parametrize(
    ("host", "key", "more", "want"),
    [
        ("127.0.0.1", "key", (), set()),
        ("0.0.0.0", None, (), set()),
        ("127.0.0.1", None, ("A.example:80",), {"localhost", "127.0.0.1", "::1", "a.example"}),
        ("10.0.0.1", "key", ("a.example",), {"10.0.0.1", "a.example"}),
        ("127.0.0.2", None, (), {"localhost", "127.0.0.1", "127.0.0.2", "::1"}),
    ],
)
def test_which_names(host: str, key: str | None, more: tuple[str, ...], want: set[str]) -> None:
    assert hosts_of(host, key, more) == want
