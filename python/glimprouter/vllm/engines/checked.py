"""Engines that were asked whether they serve: model, version, tokenizer and gate."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
import warnings
from collections.abc import AsyncGenerator
from contextlib import aclosing

from glimprouter.vllm.engines.base import (
    VERSIONS,
    Engine,
    EngineFacts,
    EngineLost,
    EngineRefused,
    EngineRequest,
    EngineUsage,
    Piece,
)
from glimprouter.vllm.protocol import GateOptions, read_greeting


class CheckedEngine:
    """One engine of a pair, asked again after each time that it was lost.

    Attributes:
        name: ``"small"`` or ``"large"``.
        usage: What all sequences have asked it for.
        lost_at: On the monotonic clock, when it was lost; None while it answers.
    """

    def __init__(self, name: str, engine: Engine, timeout: float) -> None:
        """Nothing is asked yet.

        Args:
            name: Of the model.
            engine: The engine.
            timeout: Seconds without a token after which a request counts as lost. One whose answer
                comes as a whole is waited for as long as the engine answers others.
        """
        self.name = name
        self.usage = EngineUsage()
        self.lost_at: float | None = None
        self._engine = engine
        self._timeout = timeout
        self._hello: GateOptions | None = None
        self._facts: EngineFacts | None = None
        self._checked = False
        self._checking: asyncio.Task[None] | None = None
        self._heard_at = -math.inf  # on the monotonic clock

    async def facts(self) -> EngineFacts:
        """What it is, as it said when it was last asked for its gate.

        Raises:
            EngineLost: It does not answer.
            EngineRefused: A vLLM without the interfaces.

        Warns:
            RuntimeWarning: A version of vLLM that was not tried.
        """
        if self._facts is None:
            self._facts = await self._ask_facts()
            self._warn_of_version(self._facts)
        return self._facts

    def _warn_of_version(self, facts: EngineFacts) -> None:
        if not facts.version.startswith(tuple(f"{own}." for own in VERSIONS)):
            warnings.warn(
                f"the {self.name} engine is vLLM {facts.version or '(unknown)'}; the gate was"
                f" tried with {', '.join(VERSIONS)}",
                RuntimeWarning,
                stacklevel=3,
            )

    async def _ask_facts(self) -> EngineFacts:
        try:
            return await asyncio.wait_for(self._engine.facts(), self._timeout)
        except asyncio.TimeoutError as error:
            raise EngineLost(
                f"the {self.name} engine did not answer for {self._timeout:g} s"
            ) from error
        except EngineLost as error:
            raise EngineLost(self._named(error)) from error
        except EngineRefused as error:
            raise EngineRefused(self._named(error)) from error

    def _named(self, error: Exception) -> str:
        """The message, with the engine's name once: a check within a request has it already."""
        name, message = f"the {self.name} engine", str(error)
        return message if message.startswith(name) else f"{name}: {message}"

    async def expect(self, hello: GateOptions) -> None:
        """Asks for the gate, with the client's boundary.

        Args:
            hello: With the fingerprint.

        Raises:
            EngineLost: It does not answer.
            EngineRefused: No gate, or one of another model or version.
        """
        self._hello, self._checked = hello, False
        await self._check()

    async def _check(self) -> None:
        """One check serves all who wait for it: each gets what came of it, at the same time."""
        if self._checked:
            return
        if self._checking is None:
            self._checking = asyncio.ensure_future(self._greet())
            self._checking.add_done_callback(self._end_of_check)
        await asyncio.shield(self._checking)

    def _end_of_check(self, check: asyncio.Task[None]) -> None:
        self._checking = None
        if not check.cancelled():
            check.exception()  # whoever waited has it; asyncio would tell of one that nobody saw

    async def _greet(self) -> None:
        known, hello = await self.facts(), self._hello
        assert hello is not None
        now = await self._ask_facts()
        if (now.model, now.context) != (known.model, known.context):
            raise EngineRefused(
                f"the {self.name} engine was {known.model} with a context of"
                f" {known.context}, and is {now.model} with {now.context} now"
            )
        request = EngineRequest(
            f"glimprouter-hello-{uuid.uuid4().hex}", [hello.handoff], 1, hello, [hello.handoff]
        )
        heard: list[tuple[int, float]] = []
        async with aclosing(self._pieces(request)) as pieces:
            async for piece in pieces:
                heard += zip(piece.tokens, piece.values, strict=True)
        if (wrong := read_greeting(*heard[0], hello.handoff)) is not None:
            raise EngineRefused(f"the {self.name} engine ({known.model}): {wrong}")
        self._facts, self._checked = now, True  # the gate was asked, and is the same
        if now.version != known.version:
            self._warn_of_version(now)

    async def probe(self) -> None:
        """Asks whether it answers, and serves; one that was lost is asked for its gate.

        So is one that is not what it was: it was gone, and has come back as something else.
        """
        try:
            if self._checked and await self._ask_facts() != self._facts:
                self._checked = False
            await self._check()
        except (EngineLost, EngineRefused):
            self._note_lost()
        else:
            self.lost_at = None

    def _note_lost(self) -> None:
        self._checked = False
        if self.lost_at is None:
            self.lost_at = time.monotonic()

    async def write(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        """As :meth:`Engine.write`; an engine that was lost is asked for its gate first."""
        if not self._checked:
            await self._check()
        async with aclosing(self._pieces(request)) as pieces:
            async for piece in pieces:
                self.lost_at = None
                yield piece

    async def _pieces(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        written = False
        async with aclosing(self._engine.write(request)) as pieces:
            while True:
                try:
                    piece = await self._next(request, pieces)
                except asyncio.TimeoutError as error:
                    self._note_lost()
                    raise EngineLost(
                        f"the {self.name} engine wrote nothing for {self._timeout:g} s"
                    ) from error
                except EngineLost as error:
                    self._note_lost()
                    raise EngineLost(self._named(error)) from error
                except EngineRefused as error:
                    raise EngineRefused(self._named(error)) from error
                if piece is None:
                    break
                self._heard_at = time.monotonic()
                written = written or bool(piece.tokens)
                yield piece
        if not written:  # vLLM aborts what it cannot finish, when it is told to stop, say
            self._note_lost()
            raise EngineLost(f"the {self.name} engine ended a request without a token")

    async def _next(
        self, request: EngineRequest, pieces: AsyncGenerator[Piece, None]
    ) -> Piece | None:
        """The next piece; None behind the last one.

        Raises:
            TimeoutError: It does not come.
        """
        if not request.whole:
            return await asyncio.wait_for(anext(pieces, None), self._timeout)
        coming = asyncio.ensure_future(anext(pieces, None))
        try:
            for _ in range(request.max_tokens):
                await asyncio.wait([coming], timeout=self._timeout)
                if coming.done():
                    return coming.result()
                await self._hear()
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait([coming])
        raise asyncio.TimeoutError

    async def _hear(self) -> None:
        """Asks for the gate, by a token, where nothing has come of any request for too long."""
        if time.monotonic() - self._heard_at >= self._timeout:
            self._checked = False
            await self._check()

    async def close(self) -> None:
        """Lets go of connections."""
        await self._engine.close()
