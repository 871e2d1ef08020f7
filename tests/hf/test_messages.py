"""What was generated as a message: tool calls as structure, by the tokenizer's own template."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

import glimprouter as gr
import hf_pairs
from glimprouter.hf import EncodedPrompt, Result, RoutedModel
from glimprouter.hf.pair.messages import message_of, schemas_of
from glimprouter.hf.pair.prompts import encode_prompt

pytestmark = pytest.mark.skipif(
    "prefix" not in inspect.signature(PreTrainedTokenizerBase.parse_response).parameters,
    reason="this version of transformers has no response templates",
)

TEMPLATE = {
    "version": 1,
    "start_anchor": "Assistant:",
    "defaults": {"role": "assistant"},
    "fields": {
        "thinking": {"open": "[reason]", "close": "[/reason]"},
        "tool_calls": {"open": "[call]", "close": "[/call]", "content": "json", "repeats": True},
        "content": {},
    },
}
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content or m.tool_calls }}\n{% endfor %}"
    "{% if tools %}{{ tools | length }} tools\n{% endif %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def weather(city: str, days: int) -> str:
    """The weather of some days.

    Args:
        city: Where.
        days: How many.
    """
    return f"{city} {days}"


def tokenizer_with(template: Any = TEMPLATE) -> Any:
    tokenizer = copy.deepcopy(hf_pairs.TOKENIZER)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = template
    return tokenizer


def read(text: str, tokenizer: Any, tools: Any = None) -> dict[str, Any] | None:
    prompt = tokenizer.encode("user: hi\nAssistant:", add_special_tokens=False)
    return message_of(tokenizer, prompt, tokenizer.encode(text, add_special_tokens=False), tools)


CALL = '[call]{"name": "weather", "arguments": {"city": "Bern", "days": 2}}[/call]'


def test_thinking_calls_and_content() -> None:
    message = read(f"[reason]look it up[/reason]{CALL}{CALL}Wait.", tokenizer_with())
    call = {"name": "weather", "arguments": {"city": "Bern", "days": 2}}
    assert message == {
        "role": "assistant",
        "thinking": "look it up",
        "tool_calls": [call, call],
        "content": "Wait.",
    }


def test_without_a_template_or_tokens_there_is_no_message() -> None:
    assert read("hello", tokenizer_with(None)) is None
    assert read("", tokenizer_with()) is None


def test_what_cannot_be_read_is_said() -> None:
    with pytest.warns(RuntimeWarning, match="response template cannot read what was generated"):
        assert read("[call]{not json[/call]", tokenizer_with()) is None


def test_functions_are_kept_as_schemas() -> None:
    """A saved sequence holds them, and a schema is kept as it is."""
    schema = {"type": "function", "function": {"name": "other", "parameters": {}}}
    kept = schemas_of([weather, schema])
    assert kept is not None
    assert kept[0]["function"]["parameters"]["required"] == ["city", "days"]
    assert kept[1] is schema
    assert schemas_of(None) is schemas_of([]) is None


def test_a_turn_of_tool_calls_needs_no_content() -> None:
    tokenizer = tokenizer_with()
    chat = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "tool_calls": [{"name": "weather"}]},
        {"role": "tool", "content": "rain"},
    ]
    prompt = encode_prompt(chat, tokenizer, tokenizer, {"tools": [weather]})
    assert "weather" in tokenizer.decode(prompt.large)
    assert prompt.tools == schemas_of([weather])
    with pytest.raises(ValueError, match="some content, tool calls or thinking"):
        encode_prompt([{"role": "assistant", "tool_calls": []}], tokenizer, tokenizer)


def contents(results: list[Result]) -> list[Any]:
    return [result.message["content"] for result in results if result.message is not None]


@pytest.mark.parametrize("engine", ["paged", "gather"])
def test_results_have_messages(engine: str) -> None:
    """Also of a sequence that was saved; and of ids, which name no tools."""
    pair = hf_pairs.random_pair("qwen3")
    config = gr.RouterConfig(threshold=pair.threshold, max_think_tokens=20, max_answer_tokens=4)
    model = RoutedModel(
        pair.small, pair.large, tokenizer_with(), config, engine=engine, thinking=None
    )
    options = {"tools": [weather]}
    want = model.generate(["hello"], chat_template_kwargs=options)
    assert contents(want) == [want[0].text.strip()]
    run = model.stream(["hello"], chat_template_kwargs=options)
    while len(run.generated(0)) < 5:
        run.step()
    resumed = [event.result for event in model.resume([run.save(0)]) if event.result is not None]
    assert contents(resumed) == contents(want)
    ids = encode_prompt("hello", model.tokenizer, model.tokenizer, options)
    assert contents(model.generate([EncodedPrompt(None, ids.small, ids.large)])) == contents(want)
