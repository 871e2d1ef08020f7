"""A text that has ended stays as it is, whatever becomes of its sequence."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from glimprouter.hf import Event, Result
from glimprouter.serve.answers import ChatAnswer
from glimprouter.serve.errors import Failure, RequestError
from glimprouter.serve.generation import Generation
from glimprouter.serve.pair import PairFacts
from glimprouter.serve.requests import ChatRequest
from glimprouter.trace import Trace
from serving import lone_pair

TOOL = {"type": "function", "function": {"name": "f"}}
LOST: dict[str, Any] = {
    "failure": Failure("the engine failed", 500),
    "error": Event(
        0, "done", result=Result("", "", [], Trace(end_reason="error", error="logits with a fault"))
    ),
}


class _Told:
    """A stream of sequences that says what it was given."""

    def __init__(self, *events: Any) -> None:
        self.events = list(events)

    async def next(self) -> Any:
        return 0, self.events.pop(0)

    def cancel(self, place: int) -> None:
        pass

    close = cancel


def generation(*events: Any, **fields: Any) -> Any:
    chat = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    request = ChatRequest.model_validate(chat)
    facts = PairFacts(lone_pair())
    own = Generation(
        request, facts, ChatAnswer("m", 1, trace=False), [facts.encode_chat(_untooled(request))]
    )
    own.close = lambda: None  # type: ignore[method-assign]
    own._stream = _Told(*events)  # type: ignore[assignment]
    return own


def _untooled(request: ChatRequest) -> ChatRequest:
    return request.model_copy(update={"tools": None})


def written(*texts: str) -> list[Event]:
    tokens = [Event(0, "token", model="small", token_id=9, text=text) for text in texts]
    return [Event(0, "answer_start"), *tokens]


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize(
    ("fields", "finish"),
    [({"max_tokens": 2}, "length"), ({"stop": "!"}, "stop")],
    ids=["length", "stop"],
)
def test_an_end_is_an_end(lost: str, fields: dict[str, Any], finish: str) -> None:
    own = generation(*written("one ", "two!"), LOST[lost], **fields)
    (choice,) = asyncio.run(own.complete())["choices"]
    assert choice["finish_reason"] == finish
    assert choice["message"]["content"] == ("one two!" if finish == "length" else "one two")
    json.dumps(choice)
    early = generation(*written("one "), LOST[lost], **fields)
    with pytest.raises(RequestError, match=r"engine failed|with a fault"):
        asyncio.run(early.complete())


def test_a_cut_text_with_tools_is_no_longer_than_the_cut() -> None:
    message = {"role": "assistant", "content": "one two three"}
    trace = Trace(end_reason="cancelled", total_tokens=3)
    done = Event(0, "done", result=Result("", "", [], trace, message=message))
    own = generation(*written("one ", "two"), done, max_tokens=2, tools=[TOOL])
    (choice,) = asyncio.run(own.complete())["choices"]
    assert choice["message"]["content"] == "one two"
    assert choice["finish_reason"] == "length"
