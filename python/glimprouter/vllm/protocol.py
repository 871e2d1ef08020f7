"""What a client asks a gate for, and what the gate answers: pure data, without vLLM.

A request carries one string of JSON among its extra arguments. The answer comes in a field that
every response of vLLM has: the gate leaves one token of a row, so the logit of that token is free,
and ``logprobs_mode="processed_logits"`` hands it out as the token's "log-probability".
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from glimprouter.boundary import StepBoundary
from glimprouter.config import check_integer, check_random_key, check_sampling
from glimprouter.glimpse import Status

PROTOCOL = 2  # of requests and answers: rises with every change of either
ARGUMENT = "glimprouter"  # name of the extra argument
LOGPROBS_MODE = "processed_logits"

# Values of the token that is left. Entropies lie below the first one: ln 2^31 < 22.
_PLAIN = 64.0
_OVER = 96.0
_INVALID = 128.0
_MET = 256.0
_STRANGE = 512.0
_LAST = 1024.0
_MOST_TOKENS = 1 << 24  # a float32 tells so many ids apart


@dataclass(frozen=True, slots=True)
class BoundarySpec:
    """How a gate makes the boundary of its tokenizer.

    Attributes:
        think_start: The marker that opens thinking, None where there is none.
        think_end: The marker that ends it.
        think_close: What closes it by force; None for ``think_end`` on a line of its own.
        eos_ids: Ids that end a sequence.
    """

    think_start: str | None
    think_end: str | None
    think_close: str | None
    eos_ids: tuple[int, ...]

    def boundary(self, tokenizer: Any) -> StepBoundary:
        """The boundary of a tokenizer.

        Raises:
            ValueError: A marker that the tokenizer cannot write.
        """
        return StepBoundary.from_tokenizer(
            tokenizer,
            think_start=self.think_start,
            think_end=self.think_end,
            think_close=self.think_close,
            eos_token_ids=self.eos_ids,
        )


def fingerprint(boundary: StepBoundary) -> str:
    """Equal for boundaries of the same vocabulary, markers and ends: ids and states mean the same.

    Args:
        boundary: Any.
    """
    return hashlib.sha256(repr(boundary.__reduce__()[1]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class GateOptions:
    """What one request asks of the gate.

    Attributes:
        spec: Of the boundary.
        handoff: The id that ends the request, one of its ``stop_token_ids``. Where the model draws
            it, the request ends, and the answer says so: it is never taken for a hand-off.
        hello: Fingerprint of the client's boundary: the gate says whether its own is the same, and
            nothing else is done. None for a request that writes.
        answering: Whether the thinking is over: only an end of sequence ends the request.
        automaton: State of the boundary before the first token.
        step_tokens: Tokens of the running step before the first one.
        begun: Whether the running step has its writer already.
        decides: Whether later steps, and one that has not begun, are glimpsed.
        one_step: Whether the request ends with the step.
        threshold: tau in nats.
        at_least: Whether an entropy equal to it is a hard step, too.
        hard_at: Which glimpse of the request, 1 for the first, is of a hard step whatever its
            entropy: where coins decide. None for none.
        entropy_top_k: None for the full entropy.
        max_step_tokens: Tokens of one step.
        temperature: Of the draw, which the gate makes itself; 0 for greedy.
        top_p: Filter of the draw, as in ``glimprouter.sample``; likewise the next two.
        top_k: Filter.
        min_p: Filter.
        seed: Seed of the run.
        substream: Random key of the sequence.
        position: Generated tokens of the sequence before the first one of this request.
        purpose: Of the draws: 0 for the small model's, 1 for the large one's, as the router draws.
    """

    spec: BoundarySpec
    handoff: int
    hello: str | None = None
    answering: bool = False
    automaton: int = 0
    step_tokens: int = 0
    begun: bool = False
    decides: bool = False
    one_step: bool = False
    threshold: float = math.inf
    at_least: bool = False
    hard_at: int | None = None
    entropy_top_k: int | None = None
    max_step_tokens: int = 2**31 - 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    substream: int = 0
    position: int = 0
    purpose: int = 0
    protocol: int = field(default=PROTOCOL)

    def to_json(self) -> str:
        """As the extra argument: a string, for servers take nothing nested there."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: Any) -> GateOptions:
        """Reads it back, and checks it.

        Raises:
            ValueError: Something else, or of another version of glimprouter.
        """
        try:
            values = json.loads(text)
            version = values.get("protocol")
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"the extra argument {ARGUMENT!r} must be what glimprouter.vllm.RoutedEngines"
                f" sends, got {text!r:.80}"
            ) from error
        if version != PROTOCOL:
            raise ValueError(
                f"this gate speaks version {PROTOCOL} of the protocol, the request is of version"
                f" {version!r}: install the same glimprouter for the engine and its client"
            )
        try:
            spec = values.pop("spec")
            own = cls(BoundarySpec(**{**spec, "eos_ids": tuple(spec["eos_ids"])}), **values)
            own._check()
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the extra argument {ARGUMENT!r} is malformed: {error}") from error
        return own

    def _check(self) -> None:
        check_sampling(self.temperature, self.top_p, self.top_k, self.min_p)
        for name in ("handoff", "automaton", "step_tokens", "position"):
            check_integer(name, getattr(self, name), 0)
        check_integer("purpose", self.purpose, 0, high=2**32 - 1)
        check_integer("max_step_tokens", self.max_step_tokens, 1)
        for name in ("entropy_top_k", "hard_at"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        check_random_key("seed", self.seed)
        check_random_key("substream", self.substream)
        if not isinstance(self.threshold, int | float) or math.isnan(self.threshold):
            raise TypeError(f"threshold must be a number, got {self.threshold!r}")


@dataclass(frozen=True, slots=True)
class Written:
    """One thing that a gate said.

    Attributes:
        token: The id that was written; None where a hard step was handed off, or nothing is left
            to be written.
        entropy: Nats, of a glimpse; None where nothing was glimpsed.
        status: Of the logits.
        ended: Whether the request ends here by the gate's own will.
    """

    token: int | None
    entropy: float | None = None
    status: Status = Status.OK
    ended: bool = False


def value_of(said: Written) -> float:
    """The logit that says it, to be given to ``said.token``, or to the hand-off token."""
    if said.status != Status.OK:
        return _INVALID + said.status
    if said.ended and said.token is not None:
        return _LAST + said.token
    if said.entropy is None:
        return _OVER if said.ended else _PLAIN
    return said.entropy


def meaning_of(token: int, value: float, handoff: int) -> Written:
    """What a token and its logit say.

    Args:
        token: As it came from the engine.
        value: Its "log-probability".
        handoff: The hand-off token of the request.

    Raises:
        ValueError: No gate says this.
    """
    if token != handoff and 0 <= value <= _PLAIN:
        return Written(token, None if value == _PLAIN else value)
    if token == handoff and 0 <= value < _PLAIN:
        return Written(None, value, ended=True)
    if token == handoff and value == _OVER:
        return Written(None, ended=True)
    if token == handoff and _LAST <= value < _LAST + _MOST_TOKENS and value.is_integer():
        return Written(int(value - _LAST), ended=True)
    if token == handoff and _INVALID < value < _MET and value.is_integer():
        return Written(None, status=Status(int(value - _INVALID)), ended=True)
    raise ValueError(
        f"token {token} came with {value!r}, which no gate says: the engine must be started with"
        f" --logits-processors glimprouter.vllm:GlimpGate --logprobs-mode {LOGPROBS_MODE}"
    )


def greeting(same: bool) -> float:
    """The logit of the hand-off token that answers a hello."""
    return (_MET if same else _STRANGE) + PROTOCOL


def read_greeting(token: int, value: float, handoff: int) -> str | None:
    """What is wrong with the engine that answered a hello so; None for nothing.

    Args:
        token: The first token that came.
        value: Its "log-probability".
        handoff: The hand-off token of the request.
    """
    if token == handoff and value == _MET + PROTOCOL:
        return None
    if value == _STRANGE + PROTOCOL:  # with another token where its vocabulary has no such one
        return (
            "its tokenizer, or its markers of thinking, are not those that this client was given;"
            " pass the tokenizer of the model that it serves"
        )
    if token == handoff and _MET <= value < _LAST:
        return "its gate is of another version of glimprouter; install the same on both sides"
    if token == handoff and value == 0.0:
        return f"it was started without --logprobs-mode {LOGPROBS_MODE}, by which the gate answers"
    return (
        "it has no gate, or not the mode of log-probabilities by which the gate answers: start it"
        f" with --logits-processors glimprouter.vllm:GlimpGate --logprobs-mode {LOGPROBS_MODE}"
    )
