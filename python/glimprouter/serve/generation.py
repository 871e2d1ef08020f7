"""One request from its sequences to its answer."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from glimprouter.serve.answers import Answer, server_sent
from glimprouter.serve.choice import Choice
from glimprouter.serve.errors import Failure, RequestError, without_numbers
from glimprouter.serve.front import Front, JobStream
from glimprouter.serve.jobs import Job
from glimprouter.serve.pair import PairFacts
from glimprouter.serve.requests import ChatRequest, GenerationRequest
from glimprouter.serve.sampling import overrides_of
from glimprouter.serve.texts import Delta, TextSplitter

if TYPE_CHECKING:
    from glimprouter.hf import EncodedPrompt

_SEEDS = 2**53  # those drawn here are exact where numbers are floats
_SIGN_SECONDS = 15.0  # between signs of life while a stream waits for its turn


class Generation:
    """The sequences of a request: ``n`` of each prompt.

    Attributes:
        answer: Shapes of the endpoint.
        jobs: The sequences.
        choices: What is known of each.
        status: That a stream would have had, had its error been known before it began.
    """

    def __init__(
        self,
        request: GenerationRequest,
        facts: PairFacts,
        answer: Answer,
        prompts: Sequence[EncodedPrompt],
    ) -> None:
        """Nothing runs yet.

        Args:
            request: The request.
            facts: Of the pair.
            answer: Shapes of the endpoint.
            prompts: Its prompts.

        Raises:
            RequestError: A value out of its range.
        """
        chats = isinstance(request, ChatRequest)
        parses = isinstance(request, ChatRequest) and bool(request.tools)
        parses = parses and getattr(request, "tool_choice", "auto") == "auto"
        overrides = overrides_of(request, facts.config, facts.contexts)
        for prompt in prompts:
            facts.check_room(prompt, overrides)
        seed = secrets.randbelow(_SEEDS) if request.seed is None else request.seed
        self.answer = answer
        self.status = 200
        self.jobs = [
            Job(f"{answer.id}-{place * request.n + key}", prompt, seed, key, overrides)
            for place, prompt in enumerate(prompts)
            for key in range(request.n)
        ]
        self.choices = [
            Choice(
                facts,
                TextSplitter(facts.markers, request.stops, raw=not chats),
                max_tokens=request.max_tokens,
                parses=parses,
            )
            for _ in self.jobs
        ]
        self._usage = request.stream_options is not None and request.stream_options.include_usage
        self._stream: JobStream | None = None

    def start(self, front: Front) -> None:
        """Hands the sequences over."""
        self._stream = front.submit(self.jobs)

    async def taken(self) -> None:
        """Returns when the engine has taken all sequences.

        Raises:
            RequestError: It has refused one: an answer need not begin.
        """
        assert self._stream is not None
        await self._stream.taken()

    def close(self) -> None:
        """Nobody listens any more."""
        if self._stream is not None:
            self._stream.close()

    async def _texts(self) -> AsyncIterator[tuple[int, Delta, bool]]:
        """What is new of which choice, and whether that choice has ended.

        Raises:
            RequestError: A sequence ended without a result.
        """
        assert self._stream is not None
        left = len(self.choices)
        while left:
            place, event = await self._stream.next()
            choice = self.choices[place]
            if isinstance(event, Failure):
                if choice.finish_reason is None:
                    raise RequestError(event.message, status=event.status, code="engine")
                left -= 1
                yield place, choice.end_without_result(), True
                continue
            running = choice.finish_reason is None
            try:
                delta = choice.take(event)
            except RequestError as error:
                raise RequestError(
                    without_numbers(error.message), status=error.status, code=error.code
                ) from None
            if running and choice.finish_reason is not None:
                self._stream.cancel(place)
            ended = choice.result is not None
            left -= ended
            yield place, delta, ended

    async def complete(self) -> dict[str, Any]:
        """The whole answer.

        Raises:
            RequestError: A sequence ended without a result.
        """
        async for _ in self._texts():
            pass
        return self.answer.complete(self.choices)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events; an error is the last of them."""
        assert self._stream is not None
        begun: set[int] = set()
        try:
            while not await self._stream.begins_within(_SIGN_SECONDS):
                yield b": waiting\n\n"  # proxies end connections that are silent
            async for place, delta, ended in self._texts():
                if place not in begun and (first := self.answer.first()) is not None:
                    yield self._chunk(self.answer.part(place, first))
                begun.add(place)
                new = self.answer.delta(delta)
                if new is not None:
                    yield self._chunk(self.answer.part(place, new))
                if ended:
                    yield self._chunk(self.answer.last(place, self.choices[place]))
            if self._usage:
                yield server_sent(self.answer.totals(self.choices))
        except RequestError as error:
            self.status = error.status
            yield server_sent(error.body())
        finally:
            self.close()
        yield b"data: [DONE]\n\n"

    def _chunk(self, chunk: dict[str, Any]) -> bytes:
        return server_sent({**chunk, "usage": None} if self._usage else chunk)
