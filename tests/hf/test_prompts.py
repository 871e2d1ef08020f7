"""Prompts: what each model is given, by its own chat template, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import hf_pairs
from glimprouter.hf import EncodedPrompt, RoutedModel
from hf_pairs import CHAT_TEMPLATE, ENGINE, EOS, TOKENIZER, VOCABULARY, Pair, byte_tokenizer
from hf_watch import watched

pytestmark = pytest.mark.both_engines

QUESTION = "What is 2 + 2?"
LARGE_TEMPLATE = (
    "{% for message in messages %}[[{{ message.role }}]] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] <think>{% endif %}"
)
SMALL_TEXT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n"
LARGE_TEXT = f"[[user]] {QUESTION}\n[assistant] <think>"


@pytest.fixture(scope="module")
def pair() -> Pair:
    return hf_pairs.random_pair("qwen3")


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def seen_prompts(routed: Any, prompt: Any, small_length: int) -> tuple[list[int], list[int]]:
    """The ids that each model computed in front of the generated ones, which are checked here."""
    with watched(routed.small) as small, watched(routed.large) as large:
        # A first step and an answer by the large model; the small one glimpses in between.
        result = routed.generate([prompt], first_steps_large=1, answer_model="large")[0]
    small_ids, large_ids = ([token for *_, token in seen] for seen in (small, large))
    generated = result.token_ids
    assert small_ids[small_length:] == generated[: len(small_ids) - small_length] != []
    large_length = len(large_ids) - (len(generated) - 1)  # nobody computes an answer's last id
    assert large_ids[large_length:] == generated[:-1]
    return small_ids[:small_length], large_ids[:large_length]


def test_a_string_is_one_user_message(pair: Pair) -> None:
    want = encode(SMALL_TEXT)
    assert seen_prompts(pair.routed(), QUESTION, len(want)) == (want, want)


def test_a_chat_is_rendered_whole(pair: Pair) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    want = encode(f"<|im_start|>system\nBe brief.<|im_end|>\n{SMALL_TEXT}")
    assert seen_prompts(pair.routed(), chat, len(want)) == (want, want)


def test_ids_are_taken_as_they_are(pair: Pair) -> None:
    want = pair.prompts[0]
    assert seen_prompts(pair.routed(), want, len(want)) == (want, want)


@pytest.mark.parametrize(
    "kind", [tuple, np.array, torch.tensor, lambda ids: [np.int64(i) for i in ids]]
)
def test_encoded_ids_of_any_kind(pair: Pair, kind: Any) -> None:
    """They write the same, and can be saved on the way."""
    ids = pair.prompts[0]
    encoded = EncodedPrompt(None, kind(ids), kind(ids))
    assert seen_prompts(pair.routed(), encoded, len(ids)) == (ids, ids)
    run = pair.routed().stream([encoded])
    run.step()
    saved = run.save(0)
    want = pair.routed().generate([ids])[0].token_ids
    resumed = [event.result for event in pair.routed().resume([saved]) if event.result]
    assert [result.token_ids for result in resumed] == [want]


def test_each_model_has_its_own_template(pair: Pair) -> None:
    """Positions are per model: the prompts have different lengths, the generated ids are shared."""
    config = pair.routed().config
    routed = RoutedModel(
        pair.small,
        pair.large,
        TOKENIZER,
        config,
        large_tokenizer=byte_tokenizer(LARGE_TEMPLATE),
        engine=ENGINE.get(),
        drafts=0,
    )
    want = encode(SMALL_TEXT), encode(LARGE_TEXT)
    assert len(want[0]) != len(want[1])
    assert seen_prompts(routed, QUESTION, len(want[0])) == want
    for ids, model in zip(want, ("small", "large"), strict=True):
        alone = {"route": model, "answer_model": model}
        raw = pair.routed().generate([ids], **alone)[0]
        assert routed.generate([QUESTION], **alone)[0].token_ids == raw.token_ids


def test_the_forms_may_be_mixed(pair: Pair) -> None:
    forms: list[Any] = [QUESTION, [{"role": "user", "content": QUESTION}], encode(SMALL_TEXT)]
    results = pair.routed().generate(forms)
    assert results[0].token_ids == results[1].token_ids == results[2].token_ids
    assert [result.trace.prompt for result in results] == [QUESTION, QUESTION, None]


BAD_PROMPTS: dict[str, tuple[Any, type[Exception], str]] = {
    "empty string": ("", ValueError, "prompt is empty"),
    "white space": (" \n", ValueError, "prompt is empty"),
    "empty list": ([], ValueError, "prompt is empty"),
    "number": (3, TypeError, "got int"),
    "mixed": ([1, {"role": "user", "content": "x"}], TypeError, "only"),
    "strings": (["a", "b"], TypeError, "only"),
    "encoded text": (EncodedPrompt(None, "ab", [1]), TypeError, "must be integers"),
    "encoded fractions": (EncodedPrompt(None, [1], [1.5]), TypeError, "must be integers"),
    "encoded nothing": (EncodedPrompt(None, [1], []), ValueError, "prompt is empty"),
    "booleans": ([True, False], TypeError, "only"),
    "negative id": ([5, -1], ValueError, "-1 lies outside the vocabulary"),
    "large id": ([VOCABULARY], ValueError, f"{VOCABULARY} lies outside the vocabulary"),
}


@pytest.mark.parametrize(("prompt", "error", "message"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_bad_prompts(pair: Pair, prompt: Any, error: type[Exception], message: str) -> None:
    """Refused before any model runs, also when good ones stand beside them."""
    with watched(pair.small) as seen, pytest.raises(error, match=message):
        pair.routed().generate([pair.prompts[0], prompt])
    assert seen == []


def test_a_bare_string_is_no_list_of_prompts(pair: Pair) -> None:
    with pytest.raises(TypeError, match=r"for one prompt pass \[prompt\]"):
        pair.routed().generate(QUESTION)


def test_no_template(pair: Pair) -> None:
    """Only messages need one."""
    bare = byte_tokenizer(chat_template=None)
    routed = RoutedModel(pair.small, pair.large, bare, pair.routed().config, engine=ENGINE.get())
    with pytest.raises(ValueError, match="no chat template"):
        routed.generate([QUESTION])
    assert routed.generate([pair.prompts[0]])[0].token_ids


def test_a_token_more_is_another_vocabulary(pair: Pair) -> None:
    """Written, it is text in the other one; the rest is the same."""
    other = byte_tokenizer(CHAT_TEMPLATE)
    other.add_tokens(["<extra>"])
    routed = RoutedModel(
        pair.small,
        pair.large,
        TOKENIZER,
        pair.routed().config,
        large_tokenizer=other,
        engine=ENGINE.get(),
    )
    assert routed.translation is not None
    assert routed.translation.convert([len(TOKENIZER)], source=1) == TOKENIZER.encode("<extra>")
    want = pair.routed().generate([QUESTION])
    assert routed.generate([QUESTION])[0].token_ids == want[0].token_ids


def test_end_of_sequence_ids_come_from_everywhere(pair: Pair) -> None:
    """The tokenizer's and those of both generation configs, one or several."""
    saved = pair.small.generation_config, pair.large.generation_config
    try:
        pair.small.generation_config = type(saved[0])(eos_token_id=[40, 41])
        pair.large.generation_config = type(saved[1])(eos_token_id=42)
        assert sorted(pair.routed().boundary.eos_ids) == sorted([40, 41, 42, EOS])
    finally:
        pair.small.generation_config, pair.large.generation_config = saved
