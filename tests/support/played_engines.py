"""Engines that play vLLM's part with a model of transformers, and the gate as it is."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import pytest
import torch

import glimprouter as gr
from glimprouter.hf import Result
from glimprouter.vllm import RoutedEngines
from glimprouter.vllm.engines.base import EngineFacts, EngineRequest, Piece
from glimprouter.vllm.gate.rows import Boundaries, leave_one_token
from hf_pairs import Pair

VERSION = "0.32.0"
# Called before each token with the number of tokens so far, of all requests; may raise.
Fault = Callable[[int], None]


class PlayedEngine:
    """Computes one request at a time, as vLLM's runners call a gate; a token a piece, or a whole.

    Attributes:
        requests: All that were sent, in order.
        fault: See :data:`Fault`; None for an engine that is always there.
        gate: Whether it has one.
        mode: ``logprobs_mode`` of the engine.
        change: Changes the logits of a request in place; None for nothing.
    """

    def __init__(self, model: Any, tokenizer: Any, *, context: int = 2048) -> None:
        """Starts.

        Args:
            model: Causal language model.
            tokenizer: Its tokenizer.
            context: What it says of ``max_model_len``.
        """
        self._model = model
        self._boundaries = Boundaries(tokenizer)
        self._context = context
        self.name = "played"
        self.version = VERSION
        self.requests: list[EngineRequest] = []
        self.tokens = 0
        self.fault: Fault | None = None
        self.gate = True
        self.mode = "processed_logits"
        self.change: Callable[[torch.Tensor, EngineRequest], None] | None = None

    async def facts(self) -> EngineFacts:
        """What it is."""
        if self.fault is not None:
            self.fault(self.tokens)
        return EngineFacts(self.name, self._context, self.version)

    async def write(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        """The answer while it is written, or as a whole."""
        async with aclosing(self._pieces(request)) as pieces:
            if not request.whole:
                async for piece in pieces:
                    yield piece
                return
            all_of_it = [piece async for piece in pieces]
            tokens = [token for piece in all_of_it for token in piece.tokens]
            values = [value for piece in all_of_it for value in piece.values]
            yield Piece(tokens, values, 0, all_of_it[-1].finished)

    async def _pieces(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        self.requests.append(request)
        row = self._boundaries.row(request.gate)
        written: list[int] = []
        cache, fresh = None, list(request.prompt)
        while len(written) < request.max_tokens:
            if self.fault is not None:
                self.fault(self.tokens)
            await asyncio.sleep(0)
            with torch.inference_mode():
                out = self._model(
                    torch.tensor([fresh]), past_key_values=cache, use_cache=True, logits_to_keep=1
                )
            cache = out.past_key_values
            logits = out.logits[:, -1].float().clone()
            if self.change is not None:
                self.change(logits, request)
            raw = logits.log_softmax(-1)
            if self.gate:
                row.follow(written)
                leave_one_token(logits, [(0, row)])
            token = int(logits.argmax())
            shown = logits if self.mode == "processed_logits" else raw
            if self.mode == "processed_logprobs":
                shown = logits.log_softmax(-1)
            written.append(token)
            fresh = [token]
            self.tokens += 1
            stopped = token in request.stop_token_ids
            ended = "stop" if stopped else "length" if len(written) == request.max_tokens else None
            yield Piece([token], [float(shown[0, token])], 0, ended)
            if stopped:
                return

    async def close(self) -> None:
        """Nothing."""


CONFIG = {
    "temperature": 0.0,
    "top_p": 1.0,
    "repetition_guard": False,
    "max_think_tokens": 60,
    "max_answer_tokens": 8,
    "max_step_tokens": 12,
}


OF_THE_CLIENT = {"patience", "timeout", "on_invalid", "policy"}


def played(pair: Pair, **options: Any) -> tuple[RoutedEngines, PlayedEngine, PlayedEngine]:
    """A client of two played engines."""
    own = {key: options.pop(key) for key in set(options) - OF_THE_CLIENT}
    small = PlayedEngine(pair.small, pair.tokenizer)
    large = PlayedEngine(pair.large, pair.tokenizer)
    config = gr.RouterConfig(**{**CONFIG, "threshold": pair.threshold, **own})
    client = RoutedEngines(small, large, pair.tokenizer, config, **options)
    return client, small, large


def same(got: list[Result], want: list[Result]) -> None:
    """Ids, texts, steps with their writers, entropies and ends."""
    assert len(got) == len(want)
    for own, expected in zip(got, want, strict=True):
        assert own.token_ids == expected.token_ids
        assert (own.text, own.answer) == (expected.text, expected.answer)
        steps, wanted = own.trace.steps, expected.trace.steps
        for step, other in zip(steps, wanted, strict=True):
            assert step.entropy == pytest.approx(other.entropy, abs=2e-5)
            seconds = {"seconds": 0.0, "entropy": None}
            assert dataclasses.replace(step, **seconds) == dataclasses.replace(other, **seconds)
        for name in ("end_reason", "error", "total_tokens", "answer_tokens", "answer", "prompt"):
            assert getattr(own.trace, name) == getattr(expected.trace, name)
