"""What a client needs of an engine, wherever it runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from glimprouter.vllm.protocol import GateOptions

VERSIONS = ("0.32",)  # of vLLM, with which this was tried


class EngineLost(ConnectionError):
    """An engine does not answer, or stopped in the middle; the request may be sent again."""


class EngineRefused(ValueError):
    """An engine answers, and will not do what it was asked for; nor will it the next time."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request.

    Attributes:
        request_id: Unique; says whose it is in the engine's log.
        prompt: Ids.
        max_tokens: At most so many, >= 1.
        gate: For the gate.
        stop_token_ids: Ids that end it; the hand-off token is one of them.
        replica: Which of the engine's replicas (data parallel ranks) has the sequence's prefix;
            taken modulo their number.
        whole: Whether the answer may come in one piece, at its end: nobody reads it before.
    """

    request_id: str
    prompt: Sequence[int]
    max_tokens: int
    gate: GateOptions
    stop_token_ids: Sequence[int]
    replica: int = 0
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer.

    Attributes:
        tokens: Ids, as they come from the engine.
        values: Their "log-probabilities".
        cached: Tokens of the prompt that were not computed again, once known; else None.
        finished: Why the request has ended: ``"stop"``, ``"length"``; None while it goes on.
    """

    tokens: Sequence[int]
    values: Sequence[float]
    cached: int | None = None
    finished: str | None = None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is known of an engine without asking its model.

    Attributes:
        model: Its name, for messages.
        context: Positions of the model.
        version: Of vLLM.
        eos_ids: Ids that end a sequence, by its generation config; empty where it is not known.
        source: Directory or hub name that it has loaded; empty where it is not known.
    """

    model: str
    context: int
    version: str
    eos_ids: tuple[int, ...] = ()
    source: str = ""


@dataclass(slots=True)
class EngineUsage:
    """What a client has asked one engine for.

    Attributes:
        requests: Requests that were answered, from the first token on.
        retries: Requests that were sent again.
        passes: Tokens that came, hand-off tokens included: so many forward passes of sequences.
        prompt_tokens: Of all requests.
        cached_tokens: Among these, those that prefix caching kept, as far as the engine says.
        recomputed_tokens: Tokens that it had computed for the sequence, and computed again, for
            caches hold whole blocks; counted where it says what was cached.
        dropped_tokens: Tokens behind an end that the client alone knows (repeated steps).
    """

    requests: int = 0
    retries: int = 0
    passes: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    dropped_tokens: int = 0


class Engine(Protocol):
    """An engine with a gate."""

    async def facts(self) -> EngineFacts:
        """What it is.

        Raises:
            EngineLost: It does not answer.
            EngineRefused: It is none that serves here.
        """

    def write(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        """The answer while it is written; closing the iterator ends the request.

        Raises:
            EngineLost: It does not answer, or stopped.
            EngineRefused: It will not.
        """

    async def close(self) -> None:
        """Lets go of connections; an engine that somebody else has made goes on."""
