"""The command in a process of its own: what it says, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from cli_runs import PAIR, command, run
from serving import CONFIG, PROMPTS, alone, lone_pair

ROUTING = (
    *("--threshold", str(CONFIG.threshold), "--temperature", str(CONFIG.temperature)),
    *("--top-p", str(CONFIG.top_p), "--max-answer-tokens", str(CONFIG.max_answer_tokens)),
    *("--max-think-tokens", str(CONFIG.max_think_tokens), "--drafts", "0", "--threads", "1"),
    *("--dtype", "float32"),
)


@contextmanager
def served(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    """A server in a process of its own."""
    words = command("serve", *PAIR, *ROUTING, "--port", "0", *arguments)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"glimprouter serves (\S+) at (http://127\.0\.0\.1:\d+)", line)
        assert found, (line, process.stderr and process.stderr.read())
        with openai.OpenAI(base_url=f"{found[2]}/v1", api_key="none", max_retries=0) as client:
            while True:  # it says its address before it listens to it
                try:
                    client.models.list()
                    break
                except openai.APIConnectionError:
                    assert process.poll() is None
            yield process, client
    finally:
        process.kill()
        process.communicate()


def ask(client: openai.OpenAI, prompt: str, **options: Any) -> Any:
    return client.chat.completions.create(
        model="glimprouter", messages=[{"role": "user", "content": prompt}], seed=3, **options
    )


def test_a_stopped_server_lets_its_sequences_end() -> None:
    want = [alone(prompt, 3).answer for prompt in PROMPTS[:2]]
    with served("--max-sequences", "1") as (process, client):
        stream = ask(client, PROMPTS[0], stream=True)
        next(stream)
        waiting: list[Any] = []
        other = threading.Thread(target=lambda: waiting.append(ask(client, PROMPTS[1])))
        other.start()
        while "waiting 1" not in _metrics(client):
            pass
        process.send_signal(signal.SIGTERM)
        content = "".join(c.delta.content or "" for chunk in stream for c in chunk.choices)
        other.join()
        assert [content, waiting[0].choices[0].message.content] == want
        out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert str(Path.home()) not in out


def _metrics(client: openai.OpenAI) -> str:
    return client.get("/../metrics", cast_to=str).replace(
        "glimprouter_sequences_waiting 1.0", "waiting 1"
    )


def test_a_stopped_server_saves_its_sequences_where_asked(tmp_path: Path) -> None:
    want = alone(PROMPTS[0], 3)
    with served("--save-dir", str(tmp_path)) as (process, client):
        stream = ask(client, PROMPTS[0], stream=True)
        first = next(stream)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="was saved as chatcmpl-") as caught:
            list(stream)
        process.communicate()
        assert process.returncode == 0
    (saved,) = tmp_path.iterdir()
    assert saved.stem == f"{first.id}-0"
    assert saved.stat().st_mode & 0o777 == 0o600
    assert saved.stem in str(caught.value)
    run_on = lone_pair().resume([saved.read_bytes()])
    results = [event.result for event in run_on if event.result is not None]
    assert results[0].text == want.text


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", *PAIR, "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--save-dir", "/no/such"), "--save-dir /no/such must be a directory"),
        (("--api-key", ""), "GLIMPROUTER_API_KEY) is empty"),
        (("--max-body", "many"), "--max-body must be a size"),
        (("--threshold", "-1"), "threshold must lie in"),
        (("--kv-memory", "1"), "kv_memory_bytes"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_wrong_options_end_before_anything_is_served(
    arguments: tuple[str, ...], message: str
) -> None:
    done = run("serve", *PAIR, "--port", "0", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
