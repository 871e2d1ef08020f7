"""Ways of thinking: chat templates of several shapes, prompts that leave off anywhere, formats."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chat_templates import tokenizer_with, widened
from glimprouter.hf import FORMATS, EncodedPrompt, RoutedModel
from glimprouter.hf.pair.prompts import encode_prompt
from glimprouter.hf.pair.thinking import formats_of
from hf_pairs import CHAT_TEMPLATE, byte_tokenizer, random_pair

pytestmark = pytest.mark.both_engines("paged")

# Thinking can be switched off, as Qwen 3 has it.
SWITCHED = CHAT_TEMPLATE.replace(
    "<|im_start|>assistant\n<think>\n",
    "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
)
OPENED = CHAT_TEMPLATE  # begins the thinking itself, as distilled R1 models have it
CHAT = [{"role": "user", "content": "What is a </think> for?"}]
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "<think>\nHm.\n\n</think>\n\nTwo."},
    {"role": "user", "content": "And two?"},
]


def routed(template: str, **options: Any) -> RoutedModel:
    pair = random_pair("qwen3")
    config = pair.routed(max_think_tokens=40, max_answer_tokens=9).config
    return RoutedModel(pair.small, pair.large, byte_tokenizer(template), config, **options)


@pytest.mark.parametrize("chat", [CHAT, TURNS], ids=["one turn", "several turns"])
@pytest.mark.parametrize("template", [SWITCHED, OPENED], ids=["switched", "opened"])
def test_thinking_is_open_whatever_was_said_before(template: str, chat: Any) -> None:
    result = routed(template).generate([chat])[0]
    assert result.trace.steps
    assert result.trace.answer_tokens == 9
    assert len(result.token_ids) > 40


@pytest.mark.parametrize("chat", [CHAT, TURNS], ids=["one turn", "several turns"])
def test_thinking_that_is_switched_off_is_an_answer(chat: Any) -> None:
    """From its first token, by the model that answers; nothing is glimpsed."""
    model = routed(SWITCHED)
    off = {"enable_thinking": False}
    events = list(model.stream([chat], chat_template_kwargs=off))
    result = events[-1].result
    assert result is not None
    assert events[0].kind == "answer_start"
    assert {event.model for event in events if event.token_id is not None} == {"large"}
    assert result.trace.steps == []
    assert result.trace.answer_tokens == len(result.token_ids) == 9
    assert result.answer == result.text.strip()
    small = model.generate([chat], chat_template_kwargs=off, answer_model="small")[0]
    assert small.token_ids != result.token_ids
    alone = model.large.generate(
        torch.tensor([encode_prompt(chat, model.tokenizer, model.large_tokenizer, off).large]),
        max_new_tokens=9,
        do_sample=False,
    )
    assert alone[0, -9:].tolist() == result.token_ids


def test_each_prompt_has_its_own_options() -> None:
    model = routed(SWITCHED)
    off, on = model.generate([CHAT] * 2, chat_template_kwargs=[{"enable_thinking": False}, None])
    assert off.trace.steps == []
    assert on.trace.steps


def test_a_closed_sequence_is_forked_rewound_and_saved() -> None:
    model = routed(SWITCHED)
    off = {"enable_thinking": False}
    want = model.generate([CHAT], chat_template_kwargs=off)[0]
    run = model.stream([CHAT], chat_template_kwargs=off)
    for _ in range(4):
        run.step()
    twin = run.fork(0, substream=0)
    run.rewind(0, len(run.generated(0)))
    saved = run.save(0)
    results = {event.sequence: event.result for event in run if event.result is not None}
    [resumed] = [event.result for event in model.resume([saved]) if event.result is not None]
    for result in (results[0], results[twin], resumed):
        assert (result.token_ids, result.answer) == (want.token_ids, want.answer)


def test_a_prompt_within_a_step_goes_on() -> None:
    """Raw ids: the begun step is nobody's decision, the next one is decided."""
    model = routed(OPENED)
    tokenizer = model.tokenizer
    text = "<|im_start|>assistant\n<think>\nFirst.\n\nSecond, an"
    result = model.generate([tokenizer.encode(text)])[0]
    assert result.trace.steps[0].entropy is None
    assert result.trace.steps[0].model == "small"
    events = list(model.stream([tokenizer.encode(text)]))
    behind = list(model.stream([tokenizer.encode(text.removesuffix("Second, an"))]))
    written = [[e.kind for e in each if e.kind in ("route", "step")] for each in (events, behind)]
    assert written[0][0] == "step"
    assert written[1].count("route") > 0


def test_models_that_do_not_think() -> None:
    """No marker: steps to the end, and all of it is the answer."""
    tokenizer = byte_tokenizer(CHAT_TEMPLATE.replace("<think>\n", ""))
    pair = random_pair("qwen3")
    config = pair.routed(max_think_tokens=40, max_answer_tokens=None).config
    model = RoutedModel(pair.small, pair.large, tokenizer, config, thinking=None)
    result = model.generate([CHAT])[0]
    assert result.answer == result.text.strip() != ""
    assert result.trace.answer_limit == 0
    assert sum(step.num_tokens for step in result.trace.steps) == len(result.token_ids) == 40


HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")


def test_formats_are_found() -> None:
    """By their tokens; where there are several, the chat template tells."""
    think, harmony = FORMATS["think"], FORMATS["harmony"]
    plain = byte_tokenizer()
    assert formats_of("auto", [plain, plain]) == [think, think]
    both = tokenizer_with(*HARMONY, template="{{ '<|channel|>final<|message|>' }}")
    assert formats_of("auto", [plain, both]) == [think, harmony]
    for name, format in FORMATS.items():
        if name not in ("think", "harmony", "gemma"):
            own = tokenizer_with(format.start, format.end, template="{{ '" + format.end + "' }}")
            assert formats_of("auto", [own, own]) == [format, format]
    assert formats_of("harmony", [plain, plain]) == [harmony, harmony]
    assert formats_of(None, [plain, plain]) == [None, None]


def test_harmony_from_the_prompt_to_the_answer() -> None:
    """Markers of several tokens end to end; a forced close writes the format's own."""
    tokenizer = tokenizer_with(*HARMONY, template="{{ '<|channel|>final<|message|>' }}")
    pair = random_pair("qwen3")
    spare = len(tokenizer) - pair.small.config.vocab_size
    small, large = (widened(model, spare) for model in (pair.small, pair.large))
    config = pair.routed(max_think_tokens=40, max_answer_tokens=9).config
    model = RoutedModel(small, large, tokenizer, config)
    close = tokenizer.encode(str(FORMATS["harmony"].close))
    assert model.boundary.close_ids == close
    opened = "<|start|>assistant<|channel|>analysis<|message|>"
    result = model.generate([tokenizer.encode(opened)])[0]
    assert result.token_ids[40 : 40 + len(close)] == close
    assert result.trace.answer_tokens == 9
    closed = "<|start|>assistant<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    answered = model.generate([tokenizer.encode(closed + "<|channel|>final<|message|>")])[0]
    assert answered.trace.steps == []
    assert len(answered.token_ids) == 9


def test_what_cannot_be_is_refused() -> None:
    model = routed(SWITCHED)
    with pytest.warns(RuntimeWarning, match="small model's chat template does not know 'effort'"):
        model.generate([CHAT], chat_template_kwargs={"effort": "high"}, max_think_tokens=3)
    with pytest.raises(ValueError, match="cannot set 'tokenize'"):
        model.generate([CHAT], chat_template_kwargs={"tokenize": False})
    with pytest.raises(TypeError, match="must be a dict, got str"):
        model.generate([CHAT], chat_template_kwargs=["on"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="2 chat_template_kwargs for 1 prompts"):
        model.generate([CHAT], chat_template_kwargs=[None, None])
    off = {"enable_thinking": False}
    with pytest.raises(ValueError, match="prompt 0 is past its thinking and max_answer_tokens is"):
        model.generate([CHAT], chat_template_kwargs=off, max_answer_tokens=0)
    ids = [model.tokenizer.encode(f"<|im_start|>{end}") for end in ("", "<think></think>")]
    with pytest.raises(ValueError, match="past its thinking for the large model, and not for"):
        model.generate([EncodedPrompt(None, *ids)])
    failing = routed("{{ raise_exception('no such role') }}", thinking=FORMATS["think"])
    with pytest.raises(ValueError, match=r"chat template cannot render the prompt: .*no such role"):
        failing.generate([CHAT])
