"""Many clients at once, some of which leave, send nonsense or are killed.

`python tests/support/soak.py 500 32` is the long form of the test that CI runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from serving import PROMPTS, Running, alone, new_pair, reasoning_of, running

SEEDS = 3
KINDS = ("whole", "stream", "leaves", "killed", "bad")
WEIGHTS = (40, 30, 12, 8, 10)
BAD: tuple[bytes, ...] = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"model": NaN}',
    b"[" * 100_000,
    b'{"model": "glimprouter", "messages": []}',
    b'{"model": "glimprouter", "messages": [{"role": "user", "content": "x"}], "no_such": 1}',
    b'{"model": "glimprouter", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "glimprouter", "messages": [{"role": "user", "content": "' + b"9," * 4000 + b'"}]}',
)


@dataclass
class Soak:
    """What came of it.

    Attributes:
        kinds: Requests of each kind.
        statuses: Of answers to what was no nonsense.
        wrong: Answers that were not what was expected.
        seconds: Of each whole or streamed answer.
        texts: Answers that were compared with the lone text.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    texts: list[tuple[str, int, str, str]] = field(default_factory=list)


def body_of(prompt: str, seed: int, stream: bool) -> dict[str, Any]:
    message = {"role": "user", "content": prompt}
    return {"model": "glimprouter", "messages": [message], "seed": seed, "stream": stream}


def read_stream(text: str) -> tuple[str, str]:
    """Reasoning and content of a stream."""
    found = {"reasoning_content": "", "content": ""}
    for line in text.split("\n\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                for name in found:
                    found[name] += choice["delta"].get(name) or ""
    return found["reasoning_content"], found["content"]


class Clients:
    """All clients of a soak."""

    def __init__(self, url: str, seed: int) -> None:
        self.soak = Soak()
        self._url = f"{url}/v1/chat/completions"
        self._draw = random.Random(seed)

    async def run(self, count: int, at_a_time: int) -> Soak:
        gate = asyncio.Semaphore(at_a_time)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=None, limits=limits) as client:
            await asyncio.gather(*(self._one(client, gate) for _ in range(count)))
        return self.soak

    async def _one(self, client: httpx.AsyncClient, gate: asyncio.Semaphore) -> None:
        draw = self._draw
        async with gate:
            kind = draw.choices(KINDS, WEIGHTS)[0]
            prompt, seed = draw.choice(PROMPTS), draw.randrange(SEEDS)
            self.soak.kinds[kind] += 1
            if kind == "bad":
                await self._bad(client, draw.choice(BAD))
            elif kind == "killed":
                await self._killed(body_of(prompt, seed, draw.random() < 0.5), draw.random())
            elif kind == "leaves":
                await self._leaves(client, body_of(prompt, seed, True), draw.randrange(30))
            else:
                await self._answered(client, prompt, seed, kind == "stream")

    async def _answered(
        self, client: httpx.AsyncClient, prompt: str, seed: int, stream: bool
    ) -> None:
        began = time.perf_counter()
        answer = await client.post(self._url, json=body_of(prompt, seed, stream))
        self.soak.seconds.append(time.perf_counter() - began)
        self.soak.statuses[answer.status_code] += 1
        if answer.status_code != 200:
            self.soak.wrong.append(answer.text)
        elif stream:
            self.soak.texts.append((prompt, seed, *read_stream(answer.text)))
        else:
            message = answer.json()["choices"][0]["message"]
            own = message.get("reasoning_content", ""), message["content"]
            self.soak.texts.append((prompt, seed, *own))

    async def _bad(self, client: httpx.AsyncClient, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        answer = await client.post(self._url, content=body, headers=headers)
        if answer.status_code not in (400, 404) or "message" not in answer.json()["error"]:
            self.soak.wrong.append((body[:80], answer.status_code, answer.text))

    async def _leaves(self, client: httpx.AsyncClient, body: Any, chunks: int) -> None:
        async with client.stream("POST", self._url, json=body) as answer:
            async for _ in answer.aiter_bytes():
                chunks -= 1
                if chunks < 0:
                    return

    async def _killed(self, body: Any, seconds: float) -> None:
        """A process of its own, which has no time to close anything."""
        process = await asyncio.create_subprocess_exec(
            "curl",
            "--silent",
            "--no-buffer",
            "--json",
            json.dumps(body),
            self._url,
            stdout=asyncio.subprocess.DEVNULL,
        )
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), seconds)
        if process.returncode is None:
            process.kill()
            await process.wait()


def soaked(server: Running, count: int, at_a_time: int, seed: int) -> Soak:
    """A soak of a server."""
    return asyncio.run(Clients(server.url, seed).run(count, at_a_time))


def unlike_alone(soak: Soak) -> list[Any]:
    """Answers that differ from the lone ones with the same seed."""
    found = []
    for prompt, seed, reasoning, content in soak.texts:
        want = alone(prompt, seed)
        if (reasoning, content) != (reasoning_of(want), want.answer):
            found.append((prompt, seed, reasoning, content, want.text))
    return found


def main() -> int:
    count, at_a_time = (int(word) for word in sys.argv[1:3])
    with running(new_pair(max_sequences=16), max_waiting=1000) as server:
        before = server.held()
        began = time.perf_counter()
        soak = soaked(server, count, at_a_time, 1)
        seconds = time.perf_counter() - began
        after = server.held()
        tokens = server.server.metrics.totals
    unlike = unlike_alone(soak)
    ordered = sorted(soak.seconds)
    print(f"{count} requests, {at_a_time} at a time, in {seconds:.1f} s: {dict(soak.kinds)}")
    print(f"tokens: {tokens}, {sum(tokens.values()) / seconds:.0f} a second")
    print(
        f"seconds of an answer: median {ordered[len(ordered) // 2]:.2f},"
        f" 95 % {ordered[len(ordered) * 95 // 100]:.2f}, longest {ordered[-1]:.2f}"
    )
    print(f"statuses {dict(soak.statuses)}, wrong answers {len(soak.wrong)}: {soak.wrong[:3]}")
    print(f"held before and after (running, preempted, waiting, pages, streams): {before} {after}")
    print(f"unlike the lone text: {len(unlike)} of {len(soak.texts)}")
    for entry in unlike[:3]:
        print(entry)
    return 1 if unlike or soak.wrong or after != before else 0


if __name__ == "__main__":
    sys.exit(main())
