"""Prompts as token ids, once per model by its own chat template."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, SupportsIndex, TypeAlias

import numpy as np

from glimprouter.config import check_random_key
from glimprouter.hf.pair.messages import schemas_of
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.pair.translation import same_vocabulary


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt for both models.

    Attributes:
        text: What the user wrote, or None for raw ids.
        small: Ids for the small model; its chat template may differ from the large one's.
        large: Ids for the large model.
        openings: For each model, how many ids at the end its template appended for the answer:
            they say whether thinking is open; None: whatever follows the last special token does.
        tools: JSON schemas of the tools that it names; None for none.
    """

    text: str | None
    small: list[int]
    large: list[int]
    openings: tuple[int | None, int | None] = (None, None)
    tools: list[Any] | None = None

    def opening(self, model: str) -> list[int]:
        """What says where a model's sequence stands."""
        ids = self.small if model == "small" else self.large
        count = self.openings[MODELS.index(model)]
        return ids if count is None else ids[len(ids) - count :]


# A user message, a chat, raw ids of one vocabulary, or ids for each model.
Prompt: TypeAlias = str | Sequence[dict[str, Any]] | Sequence[int] | EncodedPrompt


# Options of chat templates: for all prompts, or one (or None) a prompt.
TemplateOptions: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None


def check_prompts(prompts: Any) -> None:
    """Refuses what is no list of prompts.

    Raises:
        TypeError: A single string, or no sequence.
    """
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise TypeError("prompts must be a list of prompts; for one prompt pass [prompt]")


def encode_prompt(
    prompt: Prompt,
    small_tokenizer: Any,
    large_tokenizer: Any,
    template_options: Mapping[str, Any] | None = None,
) -> EncodedPrompt:
    """Renders a prompt with the generation prompt appended; tokens are only ever appended after it.

    Args:
        prompt: A string is one user message, a list of dicts a chat, a list of ids is raw; an
            :class:`EncodedPrompt` is taken as it is, its ids as lists of int.
        small_tokenizer: Tokenizer of the small model.
        large_tokenizer: Tokenizer of the large model.
        template_options: Handed to both chat templates.

    Raises:
        TypeError: None of these forms.
        ValueError: A template that fails, an empty prompt, an id outside the vocabulary, raw ids
            for two vocabularies, or a tokenizer without template.
    """
    if isinstance(prompt, EncodedPrompt):
        small, large = _as_ids(prompt.small), _as_ids(prompt.large)
        for ids, tokenizer in ((small, small_tokenizer), (large, large_tokenizer)):
            _check_ids(ids, tokenizer)
        return dataclasses.replace(prompt, small=small, large=large)
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError("the prompt is empty; give a question, a chat, or a list of token ids")
        chat: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        return _rendered(prompt, chat, (small_tokenizer, large_tokenizer), template_options)
    if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Sequence):
        raise TypeError(
            "a prompt is a string, a list of messages (dicts), or a list of token ids, got "
            f"{type(prompt).__name__}"
        )
    if len(prompt) == 0:
        raise ValueError("the prompt is empty; give a question, a chat, or a list of token ids")
    if all(isinstance(item, dict) for item in prompt):
        chat = [dict(message) for message in prompt if isinstance(message, dict)]
        for message in chat:
            said = any(message.get(part) for part in ("content", "tool_calls", "thinking"))
            if "role" not in message or not said:
                raise ValueError(
                    "a message needs a role and some content, tool calls or thinking, got keys"
                    f" {sorted(message)} (content is empty or missing)"
                )
        last = chat[-1]
        text = str(last.get("content") or last.get("tool_calls") or last["thinking"])
        return _rendered(text, chat, (small_tokenizer, large_tokenizer), template_options)
    if all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
        if not same_vocabulary(small_tokenizer, large_tokenizer):
            raise ValueError(
                "the tokenizers of the pair differ, so raw ids must be given for each model:"
                " EncodedPrompt(None, small=[...], large=[...])"
            )
        raw: list[int] = list(prompt)  # type: ignore[arg-type]
        _check_ids(raw, small_tokenizer)
        return EncodedPrompt(None, raw, list(raw))
    raise TypeError("a prompt that is a list must hold messages (dicts) only, or token ids only")


def encode_prompts(
    prompts: Sequence[Prompt], tokenizers: Mapping[str, Any], template_options: TemplateOptions
) -> list[EncodedPrompt]:
    """All prompts of a run.

    Args:
        prompts: As in :func:`encode_prompt`.
        tokenizers: Of the small and the large model, by name.
        template_options: Handed to both chat templates.

    Raises:
        TypeError: As there, or options that are no dict.
        ValueError: As there, or another number of options than prompts.
    """
    if template_options is None or isinstance(template_options, Mapping):
        each: list[Any] = [template_options] * len(prompts)
    else:
        each = list(template_options)
    if len(each) != len(prompts):
        raise ValueError(f"got {len(each)} chat_template_kwargs for {len(prompts)} prompts")
    check_template_options(each, tokenizers)
    pairs = zip(prompts, each, strict=True)
    return [
        encode_prompt(prompt, tokenizers["small"], tokenizers["large"], own)
        for prompt, own in pairs
    ]


def _as_ids(ids: Iterable[SupportsIndex]) -> list[int]:
    """A plain list, whatever holds the ids: they are joined with others, and saved as JSON."""
    try:
        return [index(token) for token in ids]
    except TypeError as error:
        raise TypeError(f"the ids of an EncodedPrompt must be integers: {error}") from error


def _check_ids(ids: Sequence[int], tokenizer: Any) -> None:
    if not ids:
        raise ValueError("the prompt is empty; give a question, a chat, or a list of token ids")
    vocabulary = len(tokenizer)
    for token in ids:
        if not 0 <= token < vocabulary:
            raise ValueError(f"prompt id {token} lies outside the vocabulary of {vocabulary}")


def _rendered(
    text: str,
    chat: list[dict[str, Any]],
    tokenizers: Sequence[Any],
    template_options: Mapping[str, Any] | None,
) -> EncodedPrompt:
    options = template_options or {}
    small = _render(chat, tokenizers[0], options)
    same = tokenizers[0] is tokenizers[1]
    large = (list(small[0]), small[1]) if same else _render(chat, tokenizers[1], options)
    tools = schemas_of(options.get("tools"))
    return EncodedPrompt(text, small[0], large[0], (small[1], large[1]), tools)


def _render(
    chat: list[dict[str, Any]], tokenizer: Any, options: Mapping[str, Any]
) -> tuple[list[int], int | None]:
    """The ids, and how many at their end the template appended for the answer."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template, so it cannot render a message; set"
            " tokenizer.chat_template, or pass token ids"
        )
    for message in chat:
        try:
            str(message.get("content")).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the prompt is no valid Unicode text: {error}") from error

    def render(opened: bool) -> list[int]:
        ids = tokenizer.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=opened, return_dict=False, **options
        )
        return [int(token) for token in ids]

    try:
        ids = render(True)
    except Exception as error:  # what a template raises is its own
        raise ValueError(f"the chat template cannot render the prompt: {error}") from error
    try:
        closed = render(False)
    except Exception:  # some cannot without an opening
        return ids, None
    appended = len(ids) > len(closed) and ids[: len(closed)] == closed
    return ids, len(ids) - len(closed) if appended else None


_OURS = ("tokenize", "add_generation_prompt", "return_dict", "return_tensors", "conversation")


def check_template_options(
    options: Sequence[Mapping[str, Any] | None], tokenizers: Mapping[str, Any]
) -> None:
    """Checks what is handed to chat templates.

    Raises:
        TypeError: No mapping.
        ValueError: An option that is decided here.

    Warns:
        RuntimeWarning: A template does not name an option: it would be ignored without a word.
    """
    names: set[str] = set()
    for own in options:
        if own is not None and not isinstance(own, Mapping):
            raise TypeError(f"chat_template_kwargs must be a dict, got {type(own).__name__}")
        names |= set(own or ())
    if taken := sorted(names & set(_OURS)):
        raise ValueError(f"chat_template_kwargs cannot set {taken[0]!r}: that is decided here")
    for model, tokenizer in tokenizers.items():
        template = str(getattr(tokenizer, "chat_template", None) or "")
        for name in sorted(names - {"tools", "documents", "chat_template"}):
            if re.search(rf"\b{re.escape(name)}\b", template) is None:
                warnings.warn(
                    f"the {model} model's chat template does not know {name!r}, and ignores it",
                    RuntimeWarning,
                    stacklevel=5,
                )


def seeds_of(seeds: int | Sequence[int] | None, prompts: Sequence[Prompt]) -> list[int]:
    """One a prompt, all of them checked before the first prompt starts.

    Raises:
        TypeError: No integers.
        ValueError: Another number than prompts, or one outside [0, 2^64).
    """
    if not isinstance(seeds, Sequence | np.ndarray):
        seeds = [0 if seeds is None else seeds] * len(prompts)
    if len(seeds) != len(prompts):
        raise ValueError(f"got {len(seeds)} seeds for {len(prompts)} prompts")
    for seed in seeds:
        check_random_key("seed", seed)
    return [int(seed) for seed in seeds]
