"""Chains that are written outside of a run, token by token, as results of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glimprouter.config import ModelName
from glimprouter.evaluation.chain_systems.base import DevelopmentChains
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.router import EndReason
from glimprouter.tasks import Problem
from glimprouter.trace import Trace, TraceStep

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel

__all__ = ["check_thinking", "ends_of", "most_tokens", "outcome_of_tokens", "text_of"]

DELIMITER = "\n\n"


def check_thinking(model: RoutedModel) -> None:
    """Refuses a large model whose thinking has no end that could be found.

    Raises:
        ValueError: No single token ends its thinking.
    """
    if not model.large_boundary.think_end_ids:
        raise ValueError("no single token ends the large model's thinking")


def most_tokens(chains: DevelopmentChains) -> int:
    """Tokens that a chain of the large model may have, answer included."""
    trace = chains.large[0].result.trace
    return trace.think_limit + trace.answer_limit


def ends_of(model: RoutedModel) -> list[int]:
    """Ids with which a text of the large model ends."""
    return list(model.large_boundary.eos_ids)


def text_of(model: RoutedModel, tokens: Sequence[int]) -> str:
    """Tokens of the large model as text, without special ones."""
    from glimprouter.hf.pair.text import decode

    return decode(model.large_tokenizer, tokens, skip_special=True)


def outcome_of_tokens(
    model: RoutedModel,
    problem: Problem,
    tokens: Sequence[int],
    writers: Sequence[ModelName],
    *,
    passes: Mapping[str, int],
    seconds: float,
    decision: float,
) -> Outcome:
    """What came of a problem; a step's writer is that of its first token.

    Args:
        model: The pair; the tokens are of the large model's vocabulary.
        problem: The problem.
        tokens: What was written.
        writers: Who wrote each.
        passes: Of each model.
        seconds: Of all of them.
        decision: Of the system.
    """
    from glimprouter.hf import Result, TokenCounts

    thought = _thought(model, tokens)
    answer = text_of(model, tokens[thought + 1 :]).strip()
    trace = Trace(problem.prompt, answer=answer, total_tokens=len(tokens))
    trace.answer_model = writers[-1]
    trace.answer_tokens = len(tokens) - thought
    ended = tokens[-1] in ends_of(model)
    trace.end_reason = (EndReason.EOS if ended else EndReason.ANSWER_BUDGET).name.lower()
    shares = seconds / len(tokens)
    for first, last, text in _steps(model, tokens[:thought]):
        reason = EndReason.DELIMITER if text.endswith(DELIMITER) else EndReason.THINK_END
        trace.steps.append(
            TraceStep(
                index=len(trace.steps),
                model=writers[first],
                entropy=None,
                threshold=float("nan"),
                text=text,
                num_tokens=last - first,
                seconds=shares * (last - first),
                end_reason=reason.name.lower(),
            )
        )
    trace.answer_seconds = shares * trace.answer_tokens
    counts = {name: TokenCounts(len(tokens), 0, 0, passes=count) for name, count in passes.items()}
    result = Result(text_of(model, tokens), answer, list(tokens), trace, counts)
    written = {name: sum(writer == name for writer in writers) for name in passes}
    return Outcome(result, written, {}, {}, decision=decision)


def _thought(model: RoutedModel, tokens: Sequence[int]) -> int:
    """Tokens before the end of the thinking; none of what has none is an answer."""
    ends = set(model.large_boundary.think_end_ids)
    return next((place for place, token in enumerate(tokens) if token in ends), len(tokens))


def _steps(model: RoutedModel, tokens: Sequence[int]) -> list[tuple[int, int, str]]:
    """First token, the one behind the last, and text of each step."""
    from glimprouter.hf.pair.text import SharedTokenizer

    decoder: Any = SharedTokenizer(model.large_tokenizer).incremental()
    starts = set(model.large_boundary.think_start_ids)
    found: list[tuple[int, int, str]] = []
    first, text = 0, ""
    for place, token in enumerate(tokens):
        if token in starts:
            first, text = place + 1, ""
            continue
        text += decoder.push(token, 1)
        if DELIMITER in text.lstrip():
            found.append((first, place + 1, text))
            first, text = place + 1, ""
    if text.strip():
        found.append((first, len(tokens), text + decoder.flush()))
    return found
