"""How a server ends, and how connections end that hold it up."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import httpx
import openai
import pytest

from serving import PROMPTS, Running, running, slow_pair

LONG = {"max_think_tokens": 800, "route": "large", "repetition_guard": False}


def connected(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))


def test_the_time_to_end_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever still waits is told so, whole or streamed."""
    with running(slow_pair(), stop_seconds=0) as server:
        told: list[Any] = []

        def ask() -> None:
            try:
                server.chat(PROMPTS[1], extra_body={"glimprouter": LONG})
            except openai.APIStatusError as error:
                told.append((error.status_code, error.message))

        stream = server.chat(PROMPTS[0], stream=True, extra_body={"glimprouter": LONG})
        other = threading.Thread(target=ask)
        other.start()
        while server.server.front.in_flight < 2:
            time.sleep(0.01)
        server.stop()
        with pytest.raises(openai.APIError, match="the server stops"):
            list(stream)
        other.join()
        assert told[0][0] == 503
        assert "the server stops" in told[0][1]
    assert not caplog.records


def test_a_second_signal_ends_what_runs(caplog: pytest.LogCaptureFixture) -> None:
    with running(slow_pair()) as server:
        stream = server.chat(PROMPTS[0], stream=True, extra_body={"glimprouter": LONG})
        next(stream)
        threading.Thread(target=server.stop).start()
        while not server.server.front.stopping:
            time.sleep(0.01)
        server.stop()
        with pytest.raises(openai.APIError, match="the server stops"):
            list(stream)
    assert not caplog.records


def test_a_client_that_reads_nothing_is_dropped() -> None:
    with running(send_seconds=0.3) as server:
        live = server.server.live
        assert live is not None
        text = {"kind": "text", "model": "small", "text": "x" * 30_000_000, "id": 0}
        live._kept[0] = [text]
        with connected(server) as deaf:
            deaf.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while not live._viewers:
                time.sleep(0.01)
            while live._viewers:  # until it has been dropped
                time.sleep(0.01)
        with httpx.stream("GET", f"{server.url}/live") as feed:  # a slow reader is not
            assert len(next(feed.iter_lines())) > 30_000_000


def test_a_place_is_held_until_its_answer_was_read() -> None:
    with running() as server:
        front = server.server.front
        stream = front.submit([])
        stream._places, stream._open = {5: 0}, {5}
        from glimprouter.serve.errors import Failure

        stream.tell(5, Failure("x", 500))
        assert front.unsent == 1
        stream.close()
        stream.close()
        assert front.unsent == 0


def test_bytes_without_a_request_do_not_keep_a_connection() -> None:
    """Neither before the first request nor behind an answer."""
    with running(idle_seconds=0.3) as server:
        for before in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            with connected(server) as slow:
                slow.sendall(before)
                if before:
                    assert slow.recv(2**16).startswith(b"HTTP/1.1 200")
                slow.sendall(b"GET / HTTP/1.1\r\nX: ")
                assert _is_cut_off(slow)


def _is_cut_off(connection: socket.socket) -> bool:
    """Whether a connection ends though bytes come all the time."""
    try:
        for _ in range(1000):
            connection.sendall(b"x")
            time.sleep(0.02)
    except OSError:
        return True
    return False
