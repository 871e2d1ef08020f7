"""What an engine needs of the tokens of its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class SequenceTokens(Protocol):
    """The tokens of open sequences as both models have them, and how many each has computed.

    :class:`glimprouter.KvCache` is one, and says what each method does. A model is an index of
    ``MODELS``.
    """

    def open(self, prompts: Sequence[Sequence[int]], /) -> int:
        """A sequence that has its prompts, for both models; its number."""

    def close(self, sequence: int, /) -> None:
        """Frees a sequence's memory and its number."""

    def fork(self, sequence: int, /) -> int:
        """A copy that goes its own way."""

    def append(self, model: int, sequence: int, ids: Any, /) -> None:
        """Tokens that a model wrote."""

    def caught_up(self, model: int, sequence: int, /) -> bool:
        """Whether all that was written is in the model's vocabulary."""

    def pending_spans(self, model: int, sequence: int, /) -> list[bytes]:
        """Texts that are not in the model's vocabulary yet."""

    def resolve(self, model: int, sequence: int, spans: Sequence[Sequence[int]], /) -> Any:
        """The tokens of these texts."""

    def truncate(self, sequence: int, generated: int, /) -> None:
        """Drops the generated tokens behind so many."""

    def forget(self, model: int, sequence: int, count: int, /) -> None:
        """Drops what the model has computed of the last tokens."""

    def frontier(self, sequence: int, /) -> int:
        """Generated tokens, each in its writer's vocabulary."""

    def length(self, model: int, sequence: int, /) -> int:
        """Tokens in the model's vocabulary, prompt included."""

    def generated(self, model: int, sequence: int, /) -> list[int]:
        """Generated tokens in the model's vocabulary."""

    def num_computed_tokens(self, model: int, sequence: int, /) -> int:
        """Tokens whose keys and values there are."""

    def retokenized(self, model: int, sequence: int, /) -> int:
        """Tokens that a tokenizer had to write, for none of the model's own was the same."""

    def excess(self, model: int, sequence: int, /) -> int:
        """Tokens that were computed, and then replaced by others."""
