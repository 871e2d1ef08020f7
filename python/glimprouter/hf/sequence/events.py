"""What a run reports: events while it goes on, a result at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from glimprouter.trace import Trace, TraceStep

EventKind: TypeAlias = Literal["route", "token", "step", "answer_start", "done", "error"]


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Generated tokens of one model, in its own vocabulary.

    Attributes:
        tokens: How many stand for what was generated, as far as the model was asked for.
        retokenized: Among those it was given, how many come from text that was tokenized anew: the
            other model had written it in tokens that this one does not have.
        excess: Tokens that it had computed and that such text replaced, so that it computed more
            than ``tokens``. With one vocabulary both are 0.
        recomputed: Tokens that it computed again after a rewind or a failed pass, because its state
            (of recurrent layers, say) was not kept at that place; 0 where keys and values are all.
        passes: Forward passes of the model that the sequence was part of.
        drafted: Tokens that it drafted for the other model.
        compared: Among these, those that were compared with what the other wrote: what is left came
            behind one that did not hold.
        accepted: Among these, those that the other wrote, too. Other drafts were computed in vain,
            and are in no other count.
        rewritten: Tokens that it wrote of steps that a policy then had the other model write:
            computed in vain, and in no other count.
        asides: Among its passes, those that read a step of the other model for a policy.
        aside_tokens: Tokens that it computed for them and dropped: all of the questions, and the
            steps that were then rewritten. In no other count.
    """

    tokens: int
    retokenized: int
    excess: int
    recomputed: int = 0
    passes: int = 0
    drafted: int = 0
    compared: int = 0
    accepted: int = 0
    rewritten: int = 0
    asides: int = 0
    aside_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """A finished sequence.

    Attributes:
        text: Everything generated, thinking included, without special tokens.
        answer: What follows the thinking, without special tokens and surrounding white space.
        token_ids: Generated ids only, closing and end-of-sequence ids included; where the
            tokenizers differ, all of them in the large model's vocabulary.
        trace: The steps.
        counts: By model, ``"small"`` and ``"large"``.
        message: What was generated as a message of a chat, ``{"role": "assistant", "content": ...,
            "tool_calls": [...]}``, where the large model's tokenizer has a response template
            (``tokenizer.parse_response``); else None.
    """

    text: str
    answer: str
    token_ids: list[int]
    trace: Trace
    counts: dict[str, TokenCounts] = field(default_factory=dict)
    message: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PageUsage:
    """How much of a run's memory for pages is in use, on all devices together.

    Attributes:
        bytes_used: In parts that hold pages.
        bytes: All of it.
    """

    bytes_used: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run; fields that a kind does not use are None.

    Events of a step that a policy may have rewritten come when it is kept, so none is taken back.

    Attributes:
        sequence: Index in the run: prompts in order, then forks and loaded ones.
        kind: ``"route"`` (a glimpse was decided: entropy, threshold, model), ``"token"`` (token_id,
            text, model), ``"step"`` (a finished step), ``"answer_start"`` (model), ``"done"``
            (result), ``"error"`` (message; a ``"done"`` follows).
        token_id: The committed id, of the writer's vocabulary.
        text: Text that this token completes, perhaps empty.
        model: The writer, ``"small"`` or ``"large"``.
        entropy: Nats.
        threshold: Nats; NaN where a policy decides.
        step: The finished step.
        result: The finished sequence.
        message: What went wrong.
    """

    sequence: int
    kind: EventKind
    token_id: int | None = None
    text: str | None = None
    model: str | None = None
    entropy: float | None = None
    threshold: float | None = None
    step: TraceStep | None = None
    result: Result | None = None
    message: str | None = None
