"""Chains that are written outside of a run, token by token, as results of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from glimprouter.config import ModelName
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.router import EndReason
from glimprouter.tasks import Problem
from glimprouter.trace import Trace, TraceStep

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel

__all__ = [
    "Budgets",
    "Greedy",
    "Written",
    "budgets_of",
    "check_thinking",
    "ends_of",
    "outcome_of_tokens",
    "text_of",
    "within_budgets",
]


class Budgets(NamedTuple):
    """Tokens that a chain may have."""

    think: int
    answer: int


class Written(NamedTuple):
    """A chain, token by token."""

    tokens: list[int]
    writers: list[ModelName]


def check_thinking(model: RoutedModel) -> None:
    """Refuses a large model whose thinking, or whose text, has no end that could be found.

    Raises:
        ValueError: No single token ends its thinking, or none its text.
    """
    if not model.large_boundary.think_end_ids:
        raise ValueError("no single token ends the large model's thinking")
    if not model.large_boundary.eos_ids:
        raise ValueError("no token ends the large model's text")


def budgets_of(model: RoutedModel, problems: Sequence[Problem]) -> list[Budgets]:
    """Those that a run of the pair would give each problem."""
    run = model.stream([p.prompt for p in problems], route="large", answer_model="large")
    traces = [run.trace(place) for place in range(len(problems))]
    return [Budgets(trace.think_limit, trace.answer_limit) for trace in traces]


def ends_of(model: RoutedModel) -> list[int]:
    """Ids with which a text of the large model ends."""
    return list(model.large_boundary.eos_ids)


def text_of(model: RoutedModel, tokens: Sequence[int]) -> str:
    """Tokens of the large model as text, without special ones."""
    from glimprouter.hf.pair.text import decode

    return decode(model.large_tokenizer, tokens, skip_special=True)


class Greedy:
    """Goes on with texts, the likeliest token each time, and nothing else about it.

    What it has read of a text it keeps.
    """

    def __init__(self, model: Any) -> None:
        """Nothing is read.

        Args:
            model: Of transformers, whose layers keep keys and values only.
        """
        from glimprouter.chains.resolution_pair import CachedModel

        self._cached = CachedModel(model)
        self._read: list[int] = []

    def write(self, ids: Sequence[int], most: int, ends: Sequence[int]) -> list[int]:
        """At most so many tokens, up to one of some ends.

        Args:
            ids: The text so far; where it is not what was read, that is forgotten.
            most: Tokens, >= 1.
            ends: Ids.
        """
        import torch

        from glimprouter.chains.adaptive_resolution import decided

        pairs = zip(ids[:-1], self._read, strict=False)
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
        kept = min(len(ids) - 1, len(self._read)) if same is None else same
        if kept < self._cached.length:
            self._cached.cache.crop(kept - self._cached.length)
        self._read, unread, written = list(ids[:kept]), list(ids[kept:]), list[int]()
        with torch.inference_mode():
            while len(written) < most:
                token, _ = decided(self._cached.read(unread))
                self._read += unread
                written.append(token)
                if token in ends:
                    break
                unread = [token]
        return written


def within_budgets(
    model: RoutedModel,
    prompt: Sequence[int],
    budgets: Budgets,
    write: Callable[[list[int], int, list[int]], Written],
) -> tuple[Written, int]:
    """A chain with the budgets of a run: thinking that reaches its own is closed by force.

    A run's cap on steps, and its guard of repeated ones, are not here.

    Args:
        model: The pair; the chain is the large model's.
        prompt: Ids.
        budgets: Of the prompt.
        write: Goes on behind ids with at most so many tokens, up to one of some ends.

    Returns:
        The chain, and how many of its tokens nobody wrote.
    """
    ends = ends_of(model)
    tokens, writers = write(list(prompt), budgets.think + budgets.answer, ends)
    thought = _thought(model, tokens)
    if thought < budgets.think:
        whole = thought + 1 + budgets.answer
        return Written(tokens[:whole], writers[:whole]), 0
    if len(tokens) <= budgets.think and tokens[-1] in ends:
        return Written(tokens, writers), 0
    closed = list(model.large_boundary.close_ids)
    tokens, writers = tokens[: budgets.think], writers[: budgets.think]
    tokens, writers = [*tokens, *closed], [*writers, *writers[-1:] * len(closed)]
    answer = write([*prompt, *tokens], budgets.answer, ends)
    return Written([*tokens, *answer.tokens], [*writers, *answer.writers]), len(closed)


def outcome_of_tokens(
    model: RoutedModel,
    problem: Problem,
    written: Written,
    *,
    passes: Mapping[str, int],
    seconds: float,
    decision: float,
    dropped_tokens: Mapping[str, int] | None = None,
) -> Outcome:
    """What came of a problem; a step's writer is that of its first token.

    Args:
        model: The pair; the tokens are of the large model's vocabulary.
        problem: The problem.
        written: The chain.
        passes: Of each model.
        seconds: Of all of them.
        decision: Of the system.
        dropped_tokens: That each model computed beside those that it wrote.
    """
    from glimprouter.hf import Result, TokenCounts

    tokens, writers = written
    thought = _thought(model, tokens)
    answer = text_of(model, tokens[thought + 1 :]).strip()
    trace = Trace(problem.prompt, answer=answer, total_tokens=len(tokens))
    trace.answer_model = writers[-1]
    trace.answer_tokens = len(tokens) - thought
    ended = tokens[-1] in ends_of(model)
    trace.end_reason = (EndReason.EOS if ended else EndReason.ANSWER_BUDGET).name.lower()
    share = seconds / len(tokens)
    for first, last, text, reason in _steps(model, tokens[:thought]):
        trace.steps.append(
            TraceStep(
                index=len(trace.steps),
                model=writers[first],
                entropy=None,
                threshold=float("nan"),
                text=text,
                num_tokens=last - first,
                seconds=share * (last - first),
                end_reason=reason.name.lower(),
            )
        )
    trace.answer_seconds = share * trace.answer_tokens
    counts = {name: TokenCounts(len(tokens), 0, 0, passes=n) for name, n in passes.items()}
    result = Result(text_of(model, tokens), answer, list(tokens), trace, counts)
    own = {name: sum(writer == name for writer in writers) for name in passes}
    return Outcome(
        result, own, {}, {}, dropped_tokens=dict(dropped_tokens or {}), decision=decision
    )


def _thought(model: RoutedModel, tokens: Sequence[int]) -> int:
    """Tokens before the end of the thinking; all where it has not ended."""
    ends = set(model.large_boundary.think_end_ids)
    return next((place for place, token in enumerate(tokens) if token in ends), len(tokens))


def _steps(model: RoutedModel, tokens: Sequence[int]) -> list[tuple[int, int, str, EndReason]]:
    """First token, the one behind the last, text and end of each step."""
    from glimprouter.hf.pair.text import SharedTokenizer

    boundary = model.large_boundary
    decoder = SharedTokenizer(model.large_tokenizer).incremental()
    found: list[tuple[int, int, str, EndReason]] = []
    first, text = 0, ""
    for place, token in enumerate(tokens):
        if token in boundary.think_start_ids:
            first, text = place + 1, ""
            continue
        text += decoder.push(token, 1)
        if any(delimiter in text.lstrip() for delimiter in boundary.delimiters):
            found.append((first, place + 1, text, EndReason.DELIMITER))
            first, text = place + 1, ""
    if text.strip():
        found.append((first, len(tokens), text + decoder.flush(), EndReason.THINK_END))
    return found
