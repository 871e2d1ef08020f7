"""ARI (arXiv 2408.14528), a token at a time: a model in reduced precision, and in full where close.

The reduced model computes a token. Where the margin of its two largest probabilities is at most T,
the full model computes that token anew. T comes from calibration: the largest margin at which the
two decided differently (:mod:`glimprouter.chains.resolution_margins`). Nothing is trained.

The source classifies independent inputs; between the tokens of a text the question is who computes
keys and values. Here both models are one model in two precisions, so the other's are cast and
copied, and neither computes what the other has computed: approximate, since layers in reduced
precision had them. With two different models, or to have each token exactly, a
:class:`~glimprouter.hf.RoutedModel` with :class:`~glimprouter.policies.Margin` lets each model read
what the other wrote.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

from glimprouter.chains.resolution_pair import CachedModel, check_one_architecture
from glimprouter.config import check_integer
from glimprouter.glimpse import Status, glimpse
from glimprouter.policies.checks import check_probability


class ResolutionCounts(NamedTuple):
    """What a text cost.

    Attributes:
        reduced_passes: Forward passes of the reduced model.
        full_passes: Those of the full model.
        reduced_tokens: Tokens that the reduced model computed in them, the prompt included.
        full_tokens: Those of the full model: one for each that it decided, and the prompt where it
            read that.
        copied_to_full: Tokens whose keys and values were cast and copied to the full model.
        copied_to_reduced: Those copied the other way.
    """

    reduced_passes: int
    full_passes: int
    reduced_tokens: int
    full_tokens: int
    copied_to_full: int
    copied_to_reduced: int


class Resolved(NamedTuple):
    """A text.

    Attributes:
        tokens: Written ids; one of ``eos`` comes last, if any came.
        by_full: Whether the full model decided each.
        margins: Of the reduced model before each, in [0, 1]; NaN for the first token where the full
            model read the prompt.
        counts: What it cost.
    """

    tokens: list[int]
    by_full: list[bool]
    margins: list[float]
    counts: ResolutionCounts


class AdaptiveResolution:
    """Greedy decoding by one model in two precisions, a sequence at a time.

    At ``threshold`` 0 the full model decides exact ties only; otherwise the tokens are those of the
    reduced model's own greedy decoding. At 1 with ``reader="full"`` they are the full model's own.
    """

    def __init__(
        self,
        reduced: Any,
        full: Any,
        threshold: float,
        *,
        reader: Literal["reduced", "full"] = "reduced",
    ) -> None:
        """Two precisions of one model.

        Args:
            reduced: As :func:`reduced_copy` makes it; a causal language model of transformers whose
                layers keep keys and values only. A quantized checkpoint is taken, but not tested.
            full: The same model in full precision.
            threshold: T in [0, 1]: the full model decides where the margin is at most T.
            reader: Who reads the prompt. The full model's keys and values of it are its own with
                "full"; it decides the first token then.

        Raises:
            TypeError: A threshold that is no number.
            ValueError: A value out of range, two architectures, or a cache of another kind.
        """
        check_probability("threshold", threshold)
        if reader not in ("reduced", "full"):
            raise ValueError(f"reader must be 'reduced' or 'full', got {reader!r}")
        check_one_architecture(reduced, full)
        self.reduced = reduced
        self.full = full
        self.threshold = threshold
        self.reader = reader

    def generate(
        self, ids: Sequence[int], max_new_tokens: int, eos: int | Collection[int] = ()
    ) -> Resolved:
        """Continues one prompt.

        Args:
            ids: The prompt, not empty.
            max_new_tokens: At least 1.
            eos: Ids that end the text.

        Raises:
            TypeError: A number of tokens that is no integer.
            ValueError: An empty prompt, an id outside the vocabulary, or no token wanted.
            RuntimeError: Logits that hold NaN or +inf.
        """
        import torch

        check_integer("max_new_tokens", max_new_tokens, 1)
        prompt = check_ids(self.full, ids)
        ends = set(eos) if isinstance(eos, Collection) else {int(eos)}
        text = _Text(self.reduced, self.full, self.threshold)
        with torch.inference_mode():
            text.begin(prompt, self.reader)
            while len(text.tokens) < max_new_tokens and text.tokens[-1] not in ends:
                text.go_on()
        return text.result()


def check_ids(model: Any, ids: Sequence[int]) -> list[int]:
    """The ids of one text.

    Raises:
        ValueError: None, or one outside the vocabulary.
    """
    listed = [int(token) for token in ids]
    if not listed:
        raise ValueError("a text must hold at least one id")
    size = model.config.get_text_config(decoder=True).vocab_size
    if outside := [token for token in listed if not 0 <= token < size]:
        raise ValueError(f"ids must lie in [0, {size}), got {outside[0]}")
    return listed


class _Text:
    """One sequence while it is written: the caches of both models, and who decided what.

    The reduced model's cache is complete before each pass; the full model's lacks the last tokens,
    until it is asked.
    """

    def __init__(self, reduced: Any, full: Any, threshold: float) -> None:
        self.reduced = CachedModel(reduced)
        self.full = CachedModel(full)
        self.threshold = threshold
        self.tokens: list[int] = []
        self.by_full: list[bool] = []
        self.margins: list[float] = []

    def begin(self, prompt: list[int], reader: str) -> None:
        if reader == "reduced":
            self._decide(prompt)
            return
        token, _ = decided(self.full.read(prompt))
        self.reduced.cast_copy(self.full, 0, len(prompt))
        self._write(token, True, math.nan)

    def go_on(self) -> None:
        self._decide([self.tokens[-1]])

    def _decide(self, ids: list[int]) -> None:
        token, margin = decided(self.reduced.read(ids))
        by_full = margin <= self.threshold
        if by_full:
            end = self.reduced.length - 1  # the full model computes the last token itself
            if end > self.full.length:
                self.full.cast_copy(self.reduced, self.full.length, end)
            token, _ = decided(self.full.read(ids[-1:]))
            self.reduced.cast_copy(self.full, end, end + 1)
        self._write(token, by_full, margin)

    def _write(self, token: int, by_full: bool, margin: float) -> None:
        self.tokens.append(token)
        self.by_full.append(by_full)
        self.margins.append(margin)

    def result(self) -> Resolved:
        reduced, full = self.reduced, self.full
        counts = ResolutionCounts(
            reduced.passes, full.passes, reduced.tokens, full.tokens, full.copied, reduced.copied
        )
        return Resolved(self.tokens, self.by_full, self.margins, counts)


def decided(logits: Any) -> tuple[int, float]:
    """The likeliest token of one row of logits, and its margin.

    Raises:
        RuntimeError: Logits that hold NaN or +inf, or only -inf.
    """
    row = glimpse(logits)
    status = Status(int(row.status[0]))
    if status is not Status.OK:
        raise RuntimeError(f"the model gave logits that are no distribution ({status.name})")
    return int(row.token[0]), float(row.margin[0])
