"""Answers by the real client: what they hold is what the pair writes alone with the same seed."""

from __future__ import annotations

import json
import math
import subprocess
from typing import Any

import openai
import pytest

from serving import CONFIG, PROMPTS, Running, alone, lone_pair, reasoning_of


def texts(stream: Any) -> tuple[dict[int, str], dict[int, str], list[Any]]:
    """Reasoning and content of each choice of a stream, and its chunks."""
    reasoning: dict[int, str] = {}
    content: dict[int, str] = {}
    chunks = list(stream)
    for chunk in chunks:
        for choice in chunk.choices:
            new = getattr(choice.delta, "reasoning_content", None) or ""
            reasoning[choice.index] = reasoning.get(choice.index, "") + new
            content[choice.index] = content.get(choice.index, "") + (choice.delta.content or "")
    return reasoning, content, chunks


def test_a_chat_is_what_it_is_alone(server: Running) -> None:
    answer, want = server.chat(PROMPTS[0], 3), alone(PROMPTS[0], 3)
    choice = answer.choices[0]
    assert choice.message.content == want.answer != ""
    assert choice.message.reasoning_content == reasoning_of(want) != ""
    assert choice.finish_reason == "stop"
    assert answer.usage.completion_tokens == want.trace.total_tokens
    written = answer.usage.glimprouter
    assert written["small_tokens"] + written["large_tokens"] == want.trace.total_tokens
    assert answer.usage.completion_tokens_details.reasoning_tokens == (
        want.trace.total_tokens - want.trace.answer_tokens
    )
    assert choice.glimprouter["steps"] == len(want.trace.steps)
    assert answer.usage.prompt_tokens == len(
        lone_pair().tokenizer.apply_chat_template(
            [{"role": "user", "content": PROMPTS[0]}],
            add_generation_prompt=True,
            return_dict=False,
        )
    )


def test_a_stream_of_several_choices(server: Running) -> None:
    options = {"include_usage": True}
    stream = server.chat(PROMPTS[1], 5, n=3, stream=True, stream_options=options)
    reasoning, content, chunks = texts(stream)
    model = lone_pair()
    for key in range(3):
        run = model.stream([])
        run.add([{"role": "user", "content": PROMPTS[1]}], 5, substream=key)
        want = next(event.result for event in run if event.result is not None)
        assert (reasoning[key], content[key]) == (reasoning_of(want), want.answer)
    assert len(set(reasoning.values())) > 1
    assert [chunk.choices for chunk in chunks[-1:]] == [[]]
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    ended = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert sorted(ended) == ["length", "stop", "stop"]  # one used its budget of answer tokens up


def test_without_a_seed_two_answers_have_two(server: Running) -> None:
    seeds = {
        server.openai.chat.completions.create(
            model="glimprouter", messages=[{"role": "user", "content": "Reduce 3,9"}], max_tokens=1
        )
        .choices[0]
        .glimprouter["seed"]
        for _ in range(2)
    }
    assert len(seeds) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_cuts(server: Running, stream: bool) -> None:
    want = alone(PROMPTS[0], 3)
    answer = server.chat(PROMPTS[0], 3, max_tokens=20, stream=stream)
    if stream:
        reasoning, content, chunks = texts(answer)
        assert chunks[-1].choices[0].finish_reason == "length"
        thought, said = reasoning[0], content[0]
    else:
        assert answer.usage.completion_tokens == 20
        assert answer.choices[0].finish_reason == "length"
        thought, said = (
            answer.choices[0].message.reasoning_content,
            answer.choices[0].message.content,
        )
    cut = lone_pair().tokenizer.decode(want.token_ids[:20])
    assert (thought, said) == (cut.strip(), "")


def test_as_many_tokens_as_it_has_cut_nothing(server: Running) -> None:
    want = alone(PROMPTS[0], 3)
    answer = server.chat(PROMPTS[0], 3, max_completion_tokens=want.trace.total_tokens)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == want.answer


def test_stop_strings_end_the_content(server: Running) -> None:
    want = alone(PROMPTS[0], 3).answer
    assert len(want) == 2
    answer = server.chat(PROMPTS[0], 3, stop=["nothing", want[1]])
    assert answer.choices[0].message.content == want[0]
    assert answer.choices[0].finish_reason == "stop"


def test_completions_are_the_whole_text(server: Running) -> None:
    """Raw prompts; the markers of thinking are text, and a stop may lie across tokens."""
    model = lone_pair()
    chat = [{"role": "user", "content": PROMPTS[2]}]
    ids = model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    want = model.generate([ids], seeds=[7])[0]
    create = server.openai.completions.create
    raw: Any = create(model="glimprouter", prompt=ids, seed=7)
    assert raw.choices[0].text == want.text
    text = model.tokenizer.decode(ids)
    assert create(model="glimprouter", prompt=text, seed=7).choices[0].text == want.text
    stop = "next.\n\n"
    assert want.text.count(stop) > 1
    two: Any = create(model="glimprouter", prompt=[text, text], seed=7, n=2, stop=stop)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    before = want.text[: want.text.index(stop)]
    assert two.choices[0].text == two.choices[2].text == before
    parts = [
        chunk.choices[0].text
        for chunk in create(model="glimprouter", prompt=ids, seed=7, stream=True)
    ]
    assert "".join(parts) == want.text


def test_routing_and_sampling_of_a_request(server: Running) -> None:
    own = {"threshold": 0.05, "max_think_tokens": 40, "first_steps_large": 1, "comparison": ">="}
    want = alone(PROMPTS[3], 1, temperature=0.0, top_p=1.0, **own)
    answer = server.chat(
        PROMPTS[3], 1, temperature=0, top_p=1.0, extra_body={"glimprouter": {**own, "trace": True}}
    )
    choice = answer.choices[0]
    assert choice.message.reasoning_content == reasoning_of(want)
    trace = choice.glimprouter["trace"]
    assert trace["threshold"] == choice.glimprouter["threshold"] == 0.05
    assert [step["model"] for step in trace["steps"]] == [s.model for s in want.trace.steps]
    assert trace["think_limit"] == 40
    never = server.chat(PROMPTS[3], 1, extra_body={"glimprouter": {"threshold": "inf"}})
    assert never.choices[0].glimprouter["threshold"] == "inf"
    assert never.choices[0].glimprouter["large_steps"] == 0
    assert never.choices[0].message.content == alone(PROMPTS[3], 1, threshold=math.inf).answer
    large = server.chat(PROMPTS[3], 1, extra_body={"glimprouter": {"route": "large"}})
    assert large.usage.glimprouter["small_tokens"] == 0


def test_parts_of_content_are_one_text(server: Running) -> None:
    parts = [{"type": "text", "text": part} for part in ("Reduce", " 18,39,12")]
    create = server.openai.chat.completions.create
    answer = create(
        model="glimprouter",
        messages=[{"role": "user", "content": parts}],  # type: ignore[list-item, misc]
        seed=2,
    )
    assert answer.choices[0].message.content == alone("Reduce 18,39,12", 2).answer


def templated(**options: Any) -> dict[str, Any]:
    return {"extra_body": {"chat_template_kwargs": options}}


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "tools": ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    "template": (
        "enable_thinking",
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": 0}}},
    ),
    "own template": (
        "chat_template",
        {"extra_body": {"chat_template_kwargs": {"chat_template": ""}}},
    ),
    "temperature": ("temperature", {"temperature": -1.0}),
    "threshold": ("threshold", {"extra_body": {"glimprouter": {"threshold": -1}}}),
    "too much": ("context", {"extra_body": {"glimprouter": {"max_think_tokens": 5000}}}),
    "choices": ("17 sequences", {"n": 17}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_this_pair_cannot_do(server: Running, case: str) -> None:
    word, options = REFUSED[case]
    with pytest.raises(openai.BadRequestError, match=word):
        server.chat("Reduce 3,9", **options)
    assert server.held() == (0, 0, 0, 0, 0)


def test_a_prompt_that_is_too_long(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="the prompt has 20") as caught:
        server.chat("9," * 1000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="the prompt has 20"):
        server.chat("9," * 1000, stream=True)


def test_a_message_that_the_template_would_ignore(server: Running) -> None:
    message = {"role": "user", "content": "Reduce 3,9", "name": "Ann"}
    answer = server.post({"model": "glimprouter", "messages": [message]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages.0.name"


def test_models(server: Running) -> None:
    assert [model.id for model in server.openai.models.list()] == ["glimprouter"]
    assert server.openai.models.retrieve("glimprouter").id == "glimprouter"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt' here"):
        server.openai.completions.create(model="gpt", prompt="x")


@pytest.mark.parametrize("stream", [False, True])
def test_curl(server: Running, stream: bool) -> None:
    body = {
        "model": "glimprouter",
        "messages": [{"role": "user", "content": PROMPTS[0]}],
        "seed": 3,
        "stream": stream,
    }
    url = f"{server.url}/v1/chat/completions"
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--no-buffer", "--json", json.dumps(body), url],
        capture_output=True,
        text=True,
        check=True,
    )
    want = alone(PROMPTS[0], 3)
    if stream:
        assert done.stdout.endswith("\n\ndata: [DONE]\n\n")
        assert done.stdout.count('"finish_reason":"stop"') == 1
    else:
        assert json.loads(done.stdout)["choices"][0]["message"]["content"] == want.answer


def test_the_defaults_are_the_servers(server: Running) -> None:
    trace = server.chat(PROMPTS[0], 3, extra_body={"glimprouter": {"trace": True}})
    own = trace.choices[0].glimprouter["trace"]
    assert own["think_limit"] == CONFIG.max_think_tokens
    assert own["prompt"] == PROMPTS[0]


def test_the_next_turn_of_a_chat(server: Running) -> None:
    """An answer is a message as it came; the template has no place for its thinking."""
    first = server.chat(PROMPTS[0], 3).choices[0].message
    assert first.reasoning_content
    asked: list[Any] = [
        {"role": "user", "content": PROMPTS[0]},
        first,
        {"role": "user", "content": PROMPTS[1]},
    ]
    answer = server.openai.chat.completions.create(model="glimprouter", messages=asked, seed=3)
    asked[1] = {"role": "assistant", "content": first.content}
    assert answer.choices[0].message.content == alone(asked, 3).answer.strip()
