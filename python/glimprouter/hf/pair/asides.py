"""What a policy asks of the large model, in that model's tokens; refused where it cannot be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glimprouter.boundary import StepBoundary
from glimprouter.hf.pair.translation import Translation
from glimprouter.policies import Aside, Policy
from glimprouter.policies.base import check_policy


@dataclass(frozen=True, slots=True)
class EncodedAside:
    """An :class:`~glimprouter.policies.Aside` as ids of the large model.

    Attributes:
        question: Behind the step.
        answers: Whose log-probabilities are wanted.
        tokens: Whether those of the step's tokens are.
        vocab_size: Ids of the large model that stand for anything.
    """

    question: tuple[int, ...]
    answers: tuple[int, ...]
    tokens: bool
    vocab_size: int


def encode_aside(
    policy: Policy | None,
    tokenizer: Any,
    boundary: StepBoundary,
    translation: Translation | None,
    uncut: str | None,
) -> EncodedAside | None:
    """What the large model is to read for a policy; None where it reads nothing.

    Args:
        policy: The rule, or None.
        tokenizer: Of the large model.
        boundary: Made from it.
        translation: Of the models' vocabularies; None where both have the same.
        uncut: What the large model keeps that cannot be cut behind a step; None for nothing.

    Raises:
        TypeError: No policy.
        ValueError: An answer that is not one token, an id out of range, or a pair that cannot be
            asked.
    """
    check_policy(policy)
    aside = None if policy is None else policy.aside
    if policy is None or aside is None:
        return None
    where = f"the policy {policy.name} has the large model read steps of the small one"
    if uncut is not None:
        raise ValueError(
            f"{where}, and drops the question from its memory again: {uncut}, which cannot be cut;"
            " take a policy that does not ask the large model"
        )
    if aside.tokens and translation is not None:
        raise ValueError(
            f"{where} in its own tokens, but the tokenizers of this pair differ: their"
            " log-probabilities are of other tokens; take a pair with one vocabulary"
        )
    question = _ids(tokenizer, aside.question)
    answers = tuple(_answer(policy.name, tokenizer, aside, answer) for answer in aside.answers)
    for token in (*question, *answers):
        if token >= boundary.vocab_size:
            raise ValueError(
                f"the policy {policy.name} names the token {token}, but the large model's tokenizer"
                f" has {boundary.vocab_size}"
            )
        if translation is not None and not translation.expressible("large", token):
            raise ValueError(
                f"the policy {policy.name} names the large model's token {token}, which has neither"
                " text nor a counterpart in the small model's vocabulary; word it without"
            )
    if len(set(answers)) != len(answers):
        raise ValueError(
            f"the answers {list(aside.answers)!r} of the policy {policy.name} must be distinct"
            f" tokens of the large model, got {list(answers)}"
        )
    return EncodedAside(question, answers, aside.tokens, boundary.vocab_size)


def _ids(tokenizer: Any, text: str | Sequence[int]) -> tuple[int, ...]:
    if not isinstance(text, str):
        return tuple(int(token) for token in text)
    return tuple(int(token) for token in tokenizer.encode(text, add_special_tokens=False))


def _answer(policy: str, tokenizer: Any, aside: Aside, answer: str | int) -> int:
    """The one token that an answer is, behind the question where that is text."""
    if not isinstance(answer, str):
        return int(answer)
    before = aside.question if isinstance(aside.question, str) else ""
    question = _ids(tokenizer, before)
    ids = _ids(tokenizer, before + answer)
    if ids[: len(question)] != question or len(ids) != len(question) + 1:
        shown = f"{before[-20:]!r} it makes of {before[-20:] + answer!r}" if before else "it makes"
        raise ValueError(
            f"the answer {answer!r} of the policy {policy} must be exactly one token of the large"
            f" model's tokenizer behind the question; behind {shown} other tokens"
            f" ({list(ids[-3:])} at the end, not {list(question[-2:])} and one more); let the"
            " question end otherwise, or name the answers' ids"
        )
    return ids[-1]
