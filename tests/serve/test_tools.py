"""Tools: they reach the templates, and calls come back as OpenAI has them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from glimprouter.hf import Result
from glimprouter.serve.choice import Choice
from glimprouter.serve.errors import RequestError
from glimprouter.serve.pair import PairFacts
from glimprouter.serve.requests import ChatRequest
from glimprouter.serve.texts import TextSplitter
from glimprouter.trace import Trace
from serving import Running, new_pair, running

RESPONSE = {
    "version": 1,
    "start_anchor": "assistant\n",
    "defaults": {"role": "assistant"},
    "fields": {
        "thinking": {"open": "<think>\n", "close": "</think>"},
        "tool_calls": {"open": "Left:", "close": ".", "repeats": True},
        "content": {},
    },
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}:"
    "{{ call.function.arguments.city }}{% endfor %}"
    "{{ m.tool_call_id or '' }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools[0].function.name }}\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
QUESTION = {"role": "user", "content": "Bern?"}


def with_tools() -> Any:
    """The embedded pair, as if its tokenizer knew tools."""
    model = new_pair()
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = TEMPLATE
    tokenizer.response_template = RESPONSE
    model.tokenizer = model.large_tokenizer = tokenizer
    return model


@pytest.fixture(scope="module")
def facts() -> PairFacts:
    return PairFacts(with_tools())


@pytest.fixture(scope="module")
def tools_server() -> Iterator[Running]:
    with running(with_tools()) as own:
        yield own


def request(*messages: Any, **fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": list(messages), **fields})


def rendered(facts: PairFacts, *messages: Any, **fields: Any) -> str:
    return facts.tokenizers[0].decode(facts.encode_chat(request(*messages, **fields)).small)


def test_tools_and_calls_reach_the_template(facts: PairFacts) -> None:
    arguments = {"name": "weather", "arguments": json.dumps({"city": "Bern"})}
    call = {"id": "c1", "type": "function", "function": arguments}
    chat = (
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "wet", "tool_call_id": "c1"},
    )
    text = rendered(facts, *chat, tools=[TOOL])
    assert "assistant\nweather:Bern<|im_end|>" in text
    assert "tool\nwetc1<|im_end|>" in text
    assert text.endswith("weather\n<|im_start|>assistant\n<think>\n")
    assert "weather" not in rendered(facts, QUESTION, tools=[TOOL], tool_choice="none")
    assert facts.encode_chat(request(QUESTION, tools=[TOOL])).tools == [TOOL]


def test_what_does_not_go_with_tools(facts: PairFacts) -> None:
    broken = {"type": "function", "function": {"name": "weather", "arguments": "{"}}
    turn = {"role": "assistant", "content": "x", "tool_calls": [broken]}
    with pytest.raises(RequestError, match=r"messages\.1\.tool_calls\.0\.function\.arguments"):
        facts.encode_chat(request(QUESTION, turn, QUESTION))
    with pytest.raises(RequestError, match="'stop' is refused"):
        facts.encode_chat(request(QUESTION, tools=[TOOL], stop="x"))
    options = {"tools": [TOOL]}
    with pytest.raises(RequestError, match="give them as 'tools'"):
        facts.encode_chat(request(QUESTION, chat_template_kwargs=options))


@pytest.mark.parametrize(
    ("function", "param"),
    [
        ({"parameters": {}}, "tools.0.function.name"),
        ({"name": ""}, "tools.0.function.name"),
        ({"name": "f", "strict": True}, "tools.0.function.strict"),
    ],
    ids=["no name", "empty name", "strict"],
)
def test_tools_that_are_refused(facts: PairFacts, function: dict[str, Any], param: str) -> None:
    tool = {"type": "function", "function": function}
    with pytest.raises(RequestError) as caught:
        facts.encode_chat(request(QUESTION, tools=[tool]))
    assert caught.value.param == param


@pytest.mark.parametrize("nested", [True, False])
def test_calls_of_a_message_are_openais(facts: PairFacts, nested: bool) -> None:
    function = {"name": "weather", "arguments": {"city": "Zürich"}}
    call = {"type": "function", "function": function} if nested else function
    message = {"role": "assistant", "content": "Wait.", "tool_calls": [call]}
    choice = Choice(facts, TextSplitter(facts.markers, []), max_tokens=None, parses=True)
    from glimprouter.hf import Event

    result = Result("", "", [], Trace(end_reason="eos"), message=message)
    delta = choice.take(Event(0, "done", result=result))
    assert (delta.content, choice.finish_reason) == ("Wait.", "tool_calls")
    (own,) = choice.tool_calls
    assert own["id"].startswith("call_")
    assert json.loads(own["function"]["arguments"]) == {"city": "Zürich"}


def test_a_server_with_tools(tools_server: Running) -> None:
    """Whatever the pair writes comes through its template, whole and streamed alike."""
    options: dict[str, Any] = {"tools": [TOOL], "temperature": 0}
    whole = tools_server.chat("Reduce 18,39,12", 1, **options).choices[0]
    stream = tools_server.chat("Reduce 18,39,12", 1, stream=True, **options)
    choices = [choice for chunk in stream for choice in chunk.choices]
    content = "".join(choice.delta.content or "" for choice in choices)
    calls = [call for choice in choices for call in choice.delta.tool_calls or []]
    assert content == (whole.message.content or "")
    assert [call.function.name for call in calls] == [
        call.function.name for call in whole.message.tool_calls or []
    ]
    assert choices[-1].finish_reason == whole.finish_reason
    assert whole.message.reasoning_content
