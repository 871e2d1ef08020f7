"""``glimprouter serve`` in a process of its own, in front of servers of vLLM."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from glimprouter.vllm import RoutedEngines
from hf_pairs import trained_pair
from vllm_comparison import CONFIG, PROMPTS, differing_texts
from vllm_servers import GatedServer

pytest.importorskip("vllm", reason="vLLM is not installed: no server was tried")
pytest.importorskip("fastapi", reason="the extra serve is not installed")

Servers = dict[str, GatedServer]
OPTIONS = [
    f"--{name.replace('_', '-')}={value}" for name, value in CONFIG.items() if value is not True
]
LONG = {"route": "large", "max_think_tokens": 800, "repetition_guard": False}


def started(servers: Servers, *arguments: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "glimprouter", "serve", "--port", "0", *OPTIONS]
    words += ["--small-url", servers["small"].url, "--large-url", servers["large"].url]
    return subprocess.Popen(
        [*words, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@contextmanager
def serving(servers: Servers, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and its URL once it answers."""
    process = started(servers, *arguments)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"glimprouter serves \S+ at (http://127\.0\.0\.1:\d+)", line)
        assert found, (line, process.stderr and process.stderr.read())
        while True:  # it says its address before it listens to it
            try:
                httpx.get(f"{found[1]}/health", timeout=60)
                break
            except httpx.TransportError:
                assert process.poll() is None
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def body_of(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "glimprouter", "messages": [{"role": "user", "content": prompt}], **more}


def ask(url: str, prompt: str, **more: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=body_of(prompt, **more), timeout=300)


def streamed(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def running_of(server: GatedServer) -> float:
    """Requests that a server of vLLM computes."""
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    found = re.findall(r"^vllm:num_requests_running\S* (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def test_texts_are_those_of_a_routed_model(servers: Servers) -> None:
    """Tokenizers by what the servers have loaded; whole and streamed."""
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:8]]
    want = trained_pair().routed(**CONFIG).generate(chats)
    with serving(servers) as (process, url):
        got = []
        for prompt in PROMPTS[:8]:
            (choice,) = ask(url, prompt, glimprouter={"trace": True}).json()["choices"]
            message = choice["message"]
            got.append((message.get("reasoning_content", ""), message["content"]))
        assert not differing_texts(got, want)
        with httpx.stream(
            "POST",
            f"{url}/v1/chat/completions",
            json=body_of(PROMPTS[0], stream=True),
            timeout=300,
        ) as answer:
            deltas = [chunk["choices"][0]["delta"] for chunk in streamed(answer.iter_lines())]
        content = "".join(delta.get("content") or "" for delta in deltas)
        assert content == got[0][1]
        assert 'glimprouter_engine_up{model="large"} 1.0' in httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
        assert (process.returncode, err) == (0, "")


def test_a_client_that_leaves_ends_the_request_on_the_engine(servers: Servers) -> None:
    with serving(servers) as (_, url):
        body = body_of(PROMPTS[0], stream=True, glimprouter=LONG)
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=300) as answer:
            chunks = streamed(answer.iter_lines())
            for _ in range(5):
                next(chunks)
            assert running_of(servers["large"]) == 1
        while running_of(servers["large"]) or 'cancelled"} 1.0' not in _metrics(url):
            time.sleep(0.05)


def _metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics").text


@pytest.mark.long
def test_a_stopped_server_saves_what_other_clients_go_on_with(
    servers: Servers, tmp_path: Path
) -> None:
    with serving(servers, "--save-dir", str(tmp_path)) as (process, url):
        body = body_of(PROMPTS[1], stream=True, seed=3)
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=300) as answer:
            chunks = streamed(answer.iter_lines())
            for _ in range(5):
                next(chunks)
            process.send_signal(signal.SIGTERM)
            *_, last = chunks
        assert "was saved as chatcmpl-" in last["error"]["message"]
        process.communicate()
        assert process.returncode == 0
    (saved,) = tmp_path.iterdir()
    client = RoutedEngines(servers["small"].url, servers["large"].url, trained_pair().tokenizer)
    (result,) = [e.result for e in client.resume([saved.read_bytes()]) if e.result is not None]
    client.close()
    chat = [{"role": "user", "content": PROMPTS[1]}]
    (want,) = trained_pair().routed(**CONFIG).generate([chat])
    text = result.text.split("</think>")[0].removeprefix("<think>").strip()
    assert not differing_texts([(text, result.answer)], [want])


@pytest.mark.long
def test_a_server_that_stays_away_and_comes_back(servers: Servers) -> None:
    chat = [{"role": "user", "content": PROMPTS[0]}]
    (want,) = trained_pair().routed(**CONFIG).generate([chat])
    with serving(servers, "--engine-patience", "2") as (_, url):
        servers["large"].kill()
        answer = ask(url, PROMPTS[0])
        assert answer.status_code == 503
        assert "the large model's engine does not answer" in answer.text
        assert servers["large"].url not in answer.text
        while httpx.get(f"{url}/health", timeout=60).status_code == 200:
            time.sleep(0.1)
        servers["large"].start()
        servers["large"].wait()
        while httpx.get(f"{url}/health", timeout=60).status_code == 503:
            time.sleep(0.1)
        message = ask(url, PROMPTS[0]).json()["choices"][0]["message"]
        text = (message.get("reasoning_content", ""), message["content"])
        assert not differing_texts([text], [want])


@pytest.mark.long
def test_a_server_without_a_gate_ends_the_start(servers: Servers, tmp_path: Path) -> None:
    from glimprouter.demo_pair import large_path

    bare = GatedServer(large_path(), tmp_path / "bare.log", gate=False)
    try:
        bare.wait()
        process = started({"small": servers["small"], "large": bare})
        _, err = process.communicate()
    finally:
        bare.kill()
    assert process.returncode == 2
    assert "the large engine" in err
    assert "gate" in err
    assert "Traceback" not in err
