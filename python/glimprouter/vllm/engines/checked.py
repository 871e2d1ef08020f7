"""Engines that were asked whether they serve: model, version, tokenizer and gate."""

from __future__ import annotations

import asyncio
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
            timeout: Seconds without a token after which a request counts as lost.
        """
        self.name = name
        self.usage = EngineUsage()
        self.lost_at: float | None = None
        self._engine = engine
        self._timeout = timeout
        self._hello: GateOptions | None = None
        self._facts: EngineFacts | None = None
        self._checked = False
        self._asking = asyncio.Lock()

    async def facts(self) -> EngineFacts:
        """What it is, as it said the first time.

        Raises:
            EngineLost: It does not answer.
            EngineRefused: A vLLM without the interfaces.

        Warns:
            RuntimeWarning: A version of vLLM that was not tried.
        """
        if self._facts is None:
            self._facts = await self._ask_facts()
            if not self._facts.version.startswith(tuple(f"{own}." for own in VERSIONS)):
                warnings.warn(
                    f"the {self.name} engine is vLLM {self._facts.version or '(unknown)'}; the"
                    f" gate was tried with {', '.join(VERSIONS)}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return self._facts

    async def _ask_facts(self) -> EngineFacts:
        try:
            return await asyncio.wait_for(self._engine.facts(), self._timeout)
        except asyncio.TimeoutError as error:
            raise EngineLost(
                f"the {self.name} engine did not answer for {self._timeout:g} s"
            ) from error
        except EngineLost as error:
            raise EngineLost(f"the {self.name} engine: {error}") from error
        except EngineRefused as error:
            raise EngineRefused(f"the {self.name} engine: {error}") from error

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
        async with self._asking:
            if self._checked:
                return
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
            if not heard:
                raise EngineRefused(f"the {self.name} engine ({known.model}) wrote nothing")
            if (wrong := read_greeting(*heard[0], hello.handoff)) is not None:
                raise EngineRefused(f"the {self.name} engine ({known.model}): {wrong}")
            self._checked = True

    async def probe(self) -> None:
        """Asks whether it answers, and serves; one that was lost is asked for its gate."""
        try:
            if self._checked:
                await self._ask_facts()
            else:
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
        async with aclosing(self._engine.write(request)) as pieces:
            while True:
                try:
                    piece = await asyncio.wait_for(anext(pieces), self._timeout)
                except StopAsyncIteration:
                    return
                except asyncio.TimeoutError as error:
                    self._note_lost()
                    raise EngineLost(
                        f"the {self.name} engine wrote nothing for {self._timeout:g} s"
                    ) from error
                except EngineLost as error:
                    self._note_lost()
                    raise EngineLost(f"the {self.name} engine: {error}") from error
                except EngineRefused as error:
                    raise EngineRefused(f"the {self.name} engine: {error}") from error
                yield piece

    async def close(self) -> None:
        """Lets go of connections."""
        await self._engine.close()
