"""Too much, too fast, from nobody, or nonsense: a clear answer, and nothing is left behind."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import httpx
import openai
import pytest

from glimprouter.serve import endpoints as endpoints_module
from glimprouter.serve import generation as generation_module
from serving import PROMPTS, Running, new_pair, running, slow_pair

LONG = {"max_think_tokens": 800, "route": "large", "repetition_guard": False}


def body_of(prompt: str = "Reduce 3,9", **more: Any) -> dict[str, Any]:
    return {"model": "glimprouter", "messages": [{"role": "user", "content": prompt}], **more}


def test_a_full_queue_says_when_to_come_again() -> None:
    with running(new_pair(max_sequences=1), max_waiting=1) as server:
        first = server.chat(PROMPTS[0], stream=True)
        second = server.chat(PROMPTS[1], stream=True)
        with pytest.raises(openai.RateLimitError, match="2 sequences run or wait") as caught:
            server.chat(PROMPTS[2])
        assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
        assert caught.value.type == "rate_limit_error"
        assert httpx.get(f"{server.url}/health").status_code == 200
        with pytest.raises(openai.BadRequestError, match="more than the 2 of this server"):
            server.chat(PROMPTS[2], n=3)
        for stream in (first, second):
            assert list(stream)[-1].choices[0].finish_reason
        assert server.chat(PROMPTS[2]).choices[0].finish_reason
        assert server.held() == (0, 0, 0, 0, 0)


def test_a_client_that_leaves_frees_its_row_and_its_place() -> None:
    """The one that runs, and the one that waits and has been told nothing yet."""
    with running(slow_pair(max_sequences=1), max_waiting=8) as server:
        options: dict[str, Any] = {"extra_body": {"glimprouter": LONG}, "stream": True}
        runs = server.chat(PROMPTS[0], **options)
        next(runs)
        waits = server.chat(PROMPTS[1], **options)
        whole = _connected(server, body_of(PROMPTS[2], glimprouter=LONG))
        while server.server.front.in_flight < 3:
            time.sleep(0.01)
        for stream in (runs, waits):
            stream.close()
        whole.close()
        assert server.held() == (0, 0, 0, 0, 0)
        text = httpx.get(f"{server.url}/metrics").text
        assert 'glimprouter_sequences_total{reason="cancelled"} 3.0' in text
        assert 'status="499"' in text


def _connected(server: Running, body: Any) -> socket.socket:
    """A connection that has sent a request."""
    request = httpx.Request("POST", f"{server.url}/v1/chat/completions", json=body)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    line = "POST /v1/chat/completions HTTP/1.1\r\n"
    connection.sendall(f"{line}{head}\r\n".encode() + request.content)
    return connection


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large(server: Running, declared: bool) -> None:
    """Ten megabytes; also where its size is not said beforehand."""
    parts = [b'{"model": "'] + [b"x" * 2**20] * 10
    content: Any = b"".join(parts) if declared else iter(parts)
    headers = {"Content-Type": "application/json"}
    try:
        answer = httpx.post(f"{server.url}/v1/completions", content=content, headers=headers)
    except httpx.WriteError:  # the server has closed the connection meanwhile
        assert not declared
        return
    assert answer.status_code == 413
    assert "more than the 4194304 bytes" in answer.json()["error"]["message"]


def test_a_body_that_never_comes() -> None:
    with running(idle_seconds=0.3) as server:
        port = int(server.url.rpartition(":")[2])
        silent = socket.create_connection(("127.0.0.1", port))
        with socket.create_connection(("127.0.0.1", port)) as slow:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert slow.recv(2**16).startswith(b"HTTP/1.1 408")
        assert silent.recv(10) == b""  # it was closed
        silent.close()


def test_another_content_type_is_refused(server: Running) -> None:
    """A page of another site can send plain text to this machine without being asked."""
    url = f"{server.url}/v1/chat/completions"
    answer = httpx.post(url, content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/live", "/v1/chat/completions"])
def test_an_api_key(path: str) -> None:
    with running(_shared_pair(), api_key="s3cret") as server:
        method = "POST" if "chat" in path else "GET"
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}):
            answer = httpx.request(method, server.url + path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{server.url}/health").status_code == 200
        with server.client(api_key="s3cret") as client:
            assert client.models.list().data[0].id == "glimprouter"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_an_api_key_of_any_characters(scheme: str) -> None:
    with running(_shared_pair(), api_key="gehäuse🔑") as server:
        for key, status in (("gehäuse🔑", 200), ("gehäuse", 401), ("x", 401)):
            headers = {"Authorization": f"{scheme} {key}".encode()}
            answer = httpx.get(f"{server.url}/v1/models", headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == status


_PAIRS: list[Any] = []


def _shared_pair() -> Any:
    if not _PAIRS:
        _PAIRS.append(new_pair())
    return _PAIRS[0]


def test_connections_are_bounded_and_silent_ones_cost_nothing() -> None:
    """Beyond the bound they are closed at once; those before are served."""
    with running(_shared_pair(), max_connections=20) as server:
        port = int(server.url.rpartition(":")[2])
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(15)]
        with httpx.Client() as client:
            assert client.get(f"{server.url}/health").status_code == 200
            more = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
            closed = 0
            for connection in more[-5:]:
                try:
                    closed += connection.recv(1) == b""
                except ConnectionResetError:
                    closed += 1
            assert closed == 5
            assert client.get(f"{server.url}/health").status_code == 200
        for connection in (*silent, *more):
            connection.close()


def test_a_flood_of_bad_json_disturbs_nobody(server: Running) -> None:
    stream = server.chat(PROMPTS[0], 3, stream=True)

    def flood() -> None:
        with httpx.Client(headers={"Content-Type": "application/json"}) as client:
            for place in range(50):
                answer = client.post(
                    f"{server.url}/v1/chat/completions", content=b'{"a": ' * (1 + place * 40)
                )
                assert answer.status_code == 400

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert list(stream)[-1].choices[0].finish_reason == "stop"
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/docs", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/models/../../../etc/passwd", 404),
    ],
)
def test_other_paths(server: Running, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, server.url + path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_what_nobody_expected_is_not_told(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a path of this machine nor a stack trace."""

    def broken(*_: object) -> None:
        raise OSError(f"no such file: {__file__}")

    monkeypatch.setattr(server.server._endpoints._facts, "encode_chat", broken)
    answer = server.post(body_of())
    assert answer.status_code == 500
    assert "error in the server" in answer.json()["error"]["message"]
    assert "Traceback" not in answer.text
    assert __file__ not in answer.text
    assert server.server.front.in_flight == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_prompt_that_cannot_fit_becomes_no_tokens(
    server: Running, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = server.server._endpoints._facts
    monkeypatch.setattr(facts, "tokenizers", [None, None])
    text = "1" * (facts._most_characters + 1)
    body = {"model": "glimprouter", "prompt": text} if "chat" not in path else body_of(text)
    answer = server.post(body, path)
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.status_code == 400


def test_prompts_that_wait_to_be_read_are_bounded(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one whose client has left is not read at all."""
    endpoints = server.server._endpoints
    monkeypatch.setattr(endpoints_module, "_MOST_ENCODING", 2)
    read = threading.Event()
    encoded: list[str] = []
    encode = endpoints._facts.encode_chat

    def slow(request: Any) -> Any:
        encoded.append(request.messages[0].content)
        read.wait()
        return encode(request)

    monkeypatch.setattr(endpoints._facts, "encode_chat", slow)
    first = _connected(server, body_of(PROMPTS[0]))
    while not encoded:
        time.sleep(0.01)
    second = _connected(server, body_of(PROMPTS[1]))
    while endpoints._encoding < 2:
        time.sleep(0.01)
    answer = server.post(body_of())
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "1"
    second.close()
    while endpoints._encoding == 2:
        time.sleep(0.01)
    read.set()
    assert first.recv(100).startswith(b"HTTP/1.1 200")
    first.close()
    assert server.held() == (0, 0, 0, 0, 0)
    assert encoded == [PROMPTS[0]]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer other"}])
def test_an_answer_before_the_body_ends_the_connection(headers: dict[str, str]) -> None:
    with running(_shared_pair(), api_key="s3cret") as server:
        answer = server.post(body_of(), headers=headers)
        assert (answer.status_code, answer.headers["Connection"]) == (401, "close")


def test_a_stream_that_waits_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_module, "_SIGN_SECONDS", 0.05)
    with running(slow_pair(max_sequences=1)) as server:
        first = server.chat(PROMPTS[0], stream=True, extra_body={"glimprouter": LONG})
        next(first)
        body = body_of(PROMPTS[1], stream=True)
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": waiting"
            first.close()
            assert "data: [DONE]" in list(lines)
