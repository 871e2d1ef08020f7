"""How models mark their thinking: known formats, and which one a tokenizer has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ThinkingFormat:
    """Strings around the thinking.

    Attributes:
        start: Opens it.
        end: Ends it; the answer follows.
        close: Written when thinking is closed by force; None for ``end`` on a line of its own.
    """

    start: str
    end: str
    close: str | None = None


# Published chat templates; the parts that must be tokens of their own are in angle or square
# brackets.
FORMATS = {
    "think": ThinkingFormat("<think>", "</think>"),
    "harmony": ThinkingFormat(
        "<|channel|>analysis<|message|>",
        "<|channel|>final<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "mistral": ThinkingFormat("[THINK]", "[/THINK]", "[/THINK]"),
    "seed": ThinkingFormat("<seed:think>", "</seed:think>"),
    "gemma": ThinkingFormat("<|channel>thought\n", "<channel|>", "<channel|>"),
    "cohere": ThinkingFormat("<|START_THINKING|>", "<|END_THINKING|>", "<|END_THINKING|>"),
}
_TOKENS = {
    "harmony": ("<|channel|>", "<|message|>", "<|start|>", "<|end|>"),
    "gemma": ("<|channel>", "<channel|>"),
}


def check_thinking(wanted: Any) -> None:
    """Refuses what names no format.

    Raises:
        TypeError: Neither a name, nor a format, nor None.
        ValueError: An unknown name.
    """
    if wanted is None or isinstance(wanted, ThinkingFormat):
        return
    if not isinstance(wanted, str):
        raise TypeError(
            f"thinking must be a name, a ThinkingFormat or None, got {type(wanted).__name__}"
        )
    if wanted != "auto" and wanted not in FORMATS:
        names = ", ".join(f'"{name}"' for name in ("auto", *FORMATS))
        raise ValueError(
            f"thinking must be one of {names}, got {wanted!r}; for other markers pass"
            ' ThinkingFormat(start="...", end="...")'
        )


def formats_of(
    wanted: str | ThinkingFormat | None, tokenizers: Sequence[Any]
) -> list[ThinkingFormat | None]:
    """The format of each tokenizer of a pair.

    Args:
        wanted: ``"auto"``, a name of :data:`FORMATS`, a format, or None for no thinking.
        tokenizers: Of the small and the large model.

    Raises:
        ValueError: ``"auto"`` finds thinking in one of two tokenizers.
    """
    if wanted != "auto":
        one = FORMATS[wanted] if isinstance(wanted, str) else wanted
        return [one for _ in tokenizers]
    names = [_found(tokenizer) for tokenizer in tokenizers]
    if (names[0] is None) != (names[1] is None):
        having, lacking = ("small", "large") if names[0] else ("large", "small")
        raise ValueError(
            f"the {having} model's tokenizer has markers of thinking ({names[0] or names[1]}), the"
            f" {lacking} model's has none: the two do not write one chain of thought; pass"
            " thinking=None for steps without thinking, or a ThinkingFormat that both can write"
        )
    return [None if name is None else FORMATS[name] for name in names]


def _found(tokenizer: Any) -> str | None:
    """The first format whose markers are tokens; one that the chat template names comes first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    known = added | set(tokenizer.get_vocab())
    having = [
        name
        for name, format in FORMATS.items()
        if all(part in known for part in _TOKENS.get(name, (format.start, format.end)))
    ]
    template = str(getattr(tokenizer, "chat_template", None) or "")
    named = [name for name in having if FORMATS[name].end.strip() in template]
    return next(iter([*named, *having]), None)
