"""One sequence: its requests, one after another, to the engine whose turn it is."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import torch

from glimprouter.glimpse import Status
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.sequence.events import Event, TokenCounts
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.hf.sequence.record_state import record_from_state, state_of
from glimprouter.hf.sequence.saved import SavedSequence, bytes_as_tensor, tensor_as_bytes
from glimprouter.kv import TokenLedger
from glimprouter.vllm.engines.base import (
    EngineLost,
    EngineRefused,
    EngineRequest,
    EngineUsage,
    Piece,
)
from glimprouter.vllm.mirror import Mirror
from glimprouter.vllm.pair import EnginePair
from glimprouter.vllm.protocol import Written, meaning_of

ENGINE = "vllm"  # name of the engine in saved sequences
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 5.0  # seconds before a request is sent again
_LEDGER = "ledger"
# Of a request whose answer comes as a whole: what is written behind an end that only the client
# knows (repeated steps) or is lost with its engine is no more than this.
_MOST_AT_ONCE = 512


class SequenceFailed(RuntimeError):
    """A sequence cannot go on: its engine says so, or its logits are invalid."""


class InvalidLogits(SequenceFailed):
    """NaN, +inf, or only -inf."""


class RoutedSequence:
    """A record, its row of the mirrored router, and what each engine has seen of it.

    Attributes:
        record: What was written.
        row: Of the mirror; -1 before it has begun.
        interrupted: Whether nothing more is to be written.
    """

    def __init__(
        self,
        record: SequenceRecord,
        take_row: Callable[[], int],
        pair: EnginePair,
        mirror: Mirror,
        tell: Callable[[list[Event]], None],
        ledger: TokenLedger | None = None,
    ) -> None:
        """Nothing is asked.

        Args:
            record: The sequence.
            take_row: Opens a row of the mirror.
            pair: The engines.
            mirror: Of the run.
            tell: Takes events.
            ledger: Of a saved sequence.
        """
        self.record = record
        self.row = -1
        self.interrupted = False
        self._take_row = take_row
        self._pair = pair
        self._mirror = mirror
        self._tell = tell
        self._ledger = ledger
        if ledger is None and pair.translation is not None:
            self._ledger = TokenLedger(pair.translation.map)
        self._whole = not record.stream_tokens  # whether nobody reads tokens as they come
        self._usage = {name: EngineUsage() for name in MODELS}
        self._seen = dict.fromkeys(MODELS, 0)  # tokens that an engine has computed

    def begin(self) -> None:
        """Takes its row; :meth:`end` gives it back."""
        self.row = self._take_row()

    def end(self) -> None:
        """Gives its row back."""
        self._mirror.close(self.row)

    @property
    def turn(self) -> str:
        """Name of the model whose turn it is."""
        return self._mirror.waits_for(self.row)

    async def write(self, patience: float) -> None:
        """Writes to the end, or until it is interrupted.

        Args:
            patience: Seconds that an engine may stay away.

        Raises:
            EngineLost: It stayed away for longer.
            EngineRefused: It will not.
            SequenceFailed: The sequence cannot go on.
        """
        lost_at, wait = None, _FIRST_WAIT
        while not (self.record.done or self.interrupted):
            model, before = self.turn, len(self.record.generated)
            try:
                # One that was lost is streamed: where engines are lost often, whole answers of long
                # requests would never come.
                await self._ask(model, whole=self._whole and lost_at is None)
                lost_at, wait = None, _FIRST_WAIT
            except EngineLost as error:
                now = time.monotonic()
                if lost_at is None or len(self.record.generated) > before:
                    lost_at, wait = now, _FIRST_WAIT
                if now + wait > lost_at + patience:
                    raise EngineLost(f"{error}; it stayed away for {patience:g} s") from error
                self._count(model, retries=1)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    async def _ask(self, model: str, *, whole: bool) -> None:
        """One request, from where the sequence stands: asked again, it goes on there."""
        request = self._request(model, whole)
        written, cached, wanted = 0, None, True
        clock = time.perf_counter()
        try:
            async with aclosing(self._pair.engines[model].write(request)) as pieces:
                async for piece in pieces:
                    cached = piece.cached if cached is None else cached
                    seconds = (time.perf_counter() - clock) / max(1, len(piece.tokens))
                    clock = time.perf_counter()
                    for token, value in zip(piece.tokens, piece.values, strict=True):
                        written += 1
                        if wanted:
                            wanted = self._take(model, request, token, value, seconds)
                        else:
                            self._count(model, dropped_tokens=1)
                    if self.interrupted or not (wanted or self._ends(request, piece)):
                        break
        finally:
            self._note(model, request, written, cached)

    @staticmethod
    def _ends(request: EngineRequest, piece: Piece) -> bool:
        """Whether the engine ends the request with this piece, so that nothing is to be taken back.

        A server says so, and what was cached, in pieces to come.
        """
        return not piece.tokens or piece.tokens[-1] in request.stop_token_ids

    def _request(self, model: str, whole: bool) -> EngineRequest:
        prompt = self._ids(model)
        context = self._pair.contexts[model]
        room = min(self._mirror.room(self.row), context - len(prompt))
        if room < 1:
            raise SequenceFailed(
                f"the {len(self.record.generated)} tokens generated, with the prompt, are"
                f" {len(prompt)} tokens of the {model} model, whose context is {context}; lower"
                " max_think_tokens or max_answer_tokens"
            )
        answering = self._mirror.answers(self.row)
        return EngineRequest(
            f"glimprouter-{uuid.uuid4().hex}",
            prompt,
            min(room, _MOST_AT_ONCE) if whole else room,
            self._mirror.ask(self.row, self._pair.common[model]),
            self._pair.stop_token_ids(model, answering=answering),
            self.record.index,
            whole,
        )

    def _ids(self, model: str) -> list[int]:
        """Prompt and all that was generated, in the model's vocabulary."""
        prompt = self.record.prompt_of(model)
        return [*prompt, *self.generated(model)]

    def generated(self, model: str) -> list[int]:
        """What was generated, in the model's vocabulary."""
        if self._ledger is None:
            return self.record.generated
        translation, target = self._pair.translation, MODELS.index(model)
        assert translation is not None
        self._fill_ledger()
        spans = self._ledger.pending_spans(target)
        self._ledger.resolve(target, [translation.tokenize(target, span) for span in spans])
        return self._ledger.ids(target)

    def _fill_ledger(self) -> None:
        assert self._ledger is not None
        for writer, ids in self.record.written_since(len(self._ledger)):
            self._ledger.append(writer, ids)

    def _take(
        self, model: str, request: EngineRequest, token: int, value: float, seconds: float
    ) -> bool:
        """Takes over a token that came; whether more of this answer is wanted."""
        record, handoff = self.record, request.gate.handoff
        try:
            said = meaning_of(token, value, handoff)
        except ValueError as error:  # a server that lost its gate, say: not the others' fault
            raise EngineRefused(f"{model} engine: {error}") from error
        self._check(model, said)
        if said.token is None and said.entropy is None:
            return False
        answered = self._mirror.answers(self.row)
        signals = self._mirror.take(self.row, model, said, handoff)
        for own in signals:
            self._tell(record.advance(model, own, seconds / len(signals)))
        if record.done or said.ended:
            return False
        goes_on = self._mirror.waits_for(self.row) == model
        return goes_on and self._mirror.answers(self.row) == answered

    def _check(self, model: str, said: Written) -> None:
        """Refuses what no sequence can go on behind."""
        count = len(self.record.generated)
        if said.status != Status.OK:
            reason = said.status.name.lower().replace("_", " ")
            raise InvalidLogits(
                f"the {model} model gave logits with a fault ({reason}) after {count} tokens"
            )
        translation = self._pair.translation
        if said.token is None or translation is None:
            return
        if not translation.expressible(model, said.token):
            raise SequenceFailed(
                f"the {model} model wrote token {said.token}, which has neither text nor a"
                f" counterpart in the other model's vocabulary, after {count} tokens"
            )

    def _note(self, model: str, request: EngineRequest, written: int, cached: int | None) -> None:
        """Counts, for the sequence and for the engine."""
        if written == 0:
            return
        length = len(request.prompt)
        self._count(model, requests=1, prompt_tokens=length, passes=written)
        if cached is not None:
            again = max(0, min(self._seen[model], length) - cached)
            self._count(model, cached_tokens=cached, recomputed_tokens=again)
        self._seen[model] = length + written - 1  # nothing was computed of the last one yet

    def _count(self, model: str, **changes: int) -> None:
        for usage in (self._usage[model], self._pair.engines[model].usage):
            for name, count in changes.items():
                setattr(usage, name, getattr(usage, name) + count)

    def counts(self) -> dict[str, TokenCounts]:
        """By model, as in the results of a pair in this process."""
        found = {}
        for target, name in enumerate(MODELS):
            usage = self._usage[name]
            ledger = self._ledger
            found[name] = TokenCounts(
                tokens=len(self.record.generated) if ledger is None else ledger.count(target),
                retokenized=0 if ledger is None else ledger.retokenized(target),
                excess=0,
                recomputed=usage.recomputed_tokens,
                passes=usage.passes,
            )
        return found

    def done_event(self) -> Event:
        """Of a sequence that has ended."""
        result = self.record.result(list(self.generated("large")), self.counts())
        return Event(self.record.index, "done", result=result)

    def save(self) -> bytes:
        """All of it, for ``RoutedEngines.resume``."""
        memory: dict[str, torch.Tensor] = {}
        if self._ledger is not None:
            self._fill_ledger()
            memory[_LEDGER] = bytes_as_tensor(self._ledger.save())
        state = {**state_of(self.record), "options": self._mirror.options(self.row)}
        router = self._mirror.save(self.row)
        return SavedSequence(ENGINE, self._pair.description(), state, router, memory).to_bytes()


def load_sequence(
    saved: bytes,
    index: int,
    record_options: dict[str, Any],
    pair: EnginePair,
    mirror: Mirror,
    tell: Callable[[list[Event]], None],
) -> RoutedSequence:
    """A sequence that goes on.

    Raises:
        TypeError: No bytes.
        ValueError: Foreign or damaged bytes, or those of another pair.
    """
    state = SavedSequence.from_bytes(saved)
    state.check_fits(ENGINE, pair.description())
    own = dict(state.record)
    options = own.pop("options")
    record = record_from_state(own, index, **record_options)
    ledger = None
    if pair.translation is not None:
        ledger = TokenLedger.load(tensor_as_bytes(state.memory[_LEDGER]), pair.translation.map)
    return RoutedSequence(
        record, lambda: mirror.load(state.router, options), pair, mirror, tell, ledger
    )
