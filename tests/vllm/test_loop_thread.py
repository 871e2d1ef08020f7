"""The event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from glimprouter.vllm.loop_thread import LoopThread


def test_closing_ends_tasks_that_others_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    """As those of vLLM are; the garbage collector would complain of them later."""
    thread = LoopThread()
    ended: list[str] = []
    tasks: list[asyncio.Future[None]] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("task")

    async def begin() -> None:
        tasks.append(asyncio.ensure_future(forever()))
        await asyncio.sleep(0)

    thread.call(begin())
    with caplog.at_level(logging.WARNING):
        thread.close()
        assert ended == ["task"]
        tasks.clear()
        del thread
        gc.collect()
    assert not caplog.records
