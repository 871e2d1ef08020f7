"""Commands that take a pair in two directories or behind two URLs: which, and what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cli_runs import PAIR, ended
from glimprouter.cli.engines import open_engines
from glimprouter.config import RouterConfig
from glimprouter.demo_pair import large_path, small_path

NOWHERE = "http://127.0.0.1:9"
URLS = ("--small-url", NOWHERE, "--large-url", NOWHERE)
TOKENIZERS = ("--small-tokenizer", str(small_path()), "--large-tokenizer", str(large_path()))


class _Answers(BaseHTTPRequestHandler):
    """A server like vLLM's that has no gate."""

    server: StubServer

    def do_GET(self) -> None:
        self.server.keys.append(self.headers.get("Authorization"))
        found: dict[str, Any] = {"version": "0.32.0"}
        if self.path == "/v1/models":
            found = {"data": [{"id": "m", "root": self.server.root, "max_model_len": 1024}]}
        self._answer(json.dumps(found))

    def do_POST(self) -> None:
        choice = {"token_ids": [5], "logprobs": {"token_logprobs": [-0.5]}}
        self._answer(f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n")

    def _answer(self, text: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


class StubServer(ThreadingHTTPServer):
    """One that says to have loaded ``root``, and notes the keys that it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.root = str(small_path())
        self.keys: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def stub() -> Iterator[StubServer]:
    server = StubServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


BAD_CALLS: dict[str, tuple[Sequence[str], str]] = {
    "nothing": ((), "--small is missing: give both --small and --large (directories), or both"),
    "one directory": (PAIR[2:], "--small is missing"),
    "one url": (URLS[:2], "--large-url is missing: give both"),
    "a mix": (
        (*PAIR[:2], *URLS[2:]),
        "--small and --large-url exclude each other: give both directories, or the URLs of both",
    ),
    "both": ((*PAIR, *URLS), "--small and --large and --small-url and --large-url exclude"),
    "no url": (("--small-url", "localhost:1", *URLS[2:]), "--small-url: a server's URL begins"),
    "nobody there": (URLS, "--small-url http://127.0.0.1:9: ConnectError"),
    "nobody to greet": ((*URLS, *TOKENIZERS), "engine: http://127.0.0.1:9: ConnectError"),
    "no tokenizer": (
        (*URLS, "--small-tokenizer", "/no/such"),
        "--small-tokenizer /no/such cannot be loaded",
    ),
    "patience": ((*URLS, *TOKENIZERS, "--engine-patience", "-1"), "patience >= 0 seconds"),
    **{
        f"{option} of a server": (
            (*URLS, option, value),
            f"{option} is not for --small-url and --large-url: the servers have loaded their",
        )
        for option, value in {
            "--device": "cpu",
            "--dtype": "float32",
            "--execution": "eager",
            "--drafts": "0",
            "--kv-memory": "1GiB",
            "--threads": "1",
        }.items()
    },
    **{
        f"{option} of directories": (
            (*PAIR, option, value),
            f"{option} is for servers: it goes with --small-url and --large-url",
        )
        for option, value in {
            "--small-tokenizer": str(small_path()),
            "--large-tokenizer": str(large_path()),
            "--engine-api-key": "key",
            "--engine-timeout": "1",
            "--engine-patience": "1",
        }.items()
    },
}


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_what_does_not_go_together_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    message: str,
) -> None:
    status, out, err = ended(monkeypatch, capfd, "serve", "--port", "0", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_server_without_a_gate_ends_the_start(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The tokenizers are those of the directories that the servers name."""
    words = ("serve", "--port", "0", "--small-url", stub.url, "--large-url", stub.url)
    monkeypatch.setenv("GLIMPROUTER_ENGINE_API_KEY", "s3cret")
    status, out, err = ended(monkeypatch, capfd, *words)
    assert (status, out) == (2, "")
    assert "no gate" in err
    assert set(stub.keys) == {"Bearer s3cret"}


def test_a_tokenizer_that_only_the_server_has(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stub.root = "/models/elsewhere"
    words = ("serve", "--port", "0", "--small-url", stub.url, "--large-url", stub.url)
    status, _, err = ended(monkeypatch, capfd, *words)
    assert status == 2
    assert "small model's server has loaded /models/elsewhere, whose tokenizer is not on" in err
    assert "--small-tokenizer DIR" in err


def test_what_was_given_is_not_asked_for(stub: StubServer) -> None:
    """A tokenizer of a directory: no server is asked before the pair is used."""
    small, large = str(small_path()), str(large_path())
    model = open_engines(stub.url, stub.url, small, large, RouterConfig(), max_sequences=3)
    assert stub.keys == []
    assert model.max_sequences == 3
    assert model.tokenizer.name_or_path == small
    assert model.large_tokenizer.name_or_path == large
