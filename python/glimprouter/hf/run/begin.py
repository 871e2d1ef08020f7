"""The records of prompts, and the options that open them in a router."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from glimprouter.boundary import StepBoundary
from glimprouter.config import RouterConfig
from glimprouter.hf.pair.budgets import budgets_of
from glimprouter.hf.pair.prompts import EncodedPrompt
from glimprouter.hf.pair.standing import start_of
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.trace import Trace


def begin_records(
    prompts: Sequence[EncodedPrompt],
    seeds: Sequence[int],
    config: RouterConfig,
    boundaries: Sequence[StepBoundary],
    contexts: Mapping[str, int],
    record_options: Mapping[str, Any],
    policy: str | None = None,
) -> tuple[list[SequenceRecord], list[dict[str, Any]]]:
    """A record for each prompt, and the options of ``StepRouter.open`` that are its own.

    Args:
        prompts: The prompts of a run.
        seeds: One a prompt.
        config: Of all of them.
        boundaries: Of the small and the large model.
        contexts: Positions of each model, by name.
        record_options: Fields of a record that the pair decides.
        policy: Name of the policy that decides about steps; None where the threshold does.

    Raises:
        ValueError: A prompt that leaves no room, or nothing to write.
    """
    closing = len(boundaries[0].close_ids)
    thinks = bool(record_options["thinks"])
    records: list[SequenceRecord] = []
    options: list[dict[str, Any]] = []
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        budgets = budgets_of(index, prompt, config, contexts, closing, thinks=thinks)
        start = start_of(index, prompt, boundaries, budgets)
        trace = Trace(
            prompt=prompt.text,
            seed=seed,
            substream=index,
            threshold=config.threshold if policy is None else math.nan,
            policy=policy,
            think_limit=budgets.think,
            answer_limit=budgets.answer,
            derived_limits=list(budgets.derived),
            answer_model=config.answer_model,
        )
        records.append(
            SequenceRecord(
                index,
                prompt,
                trace,
                max_new_tokens=budgets.think + budgets.answer + closing,
                answering=start.answering,
                **record_options,
            )
        )
        options.append(
            {
                "seed": seed,
                "substream": index,
                "start": start,
                "max_think_tokens": budgets.think,
                "max_answer_tokens": budgets.answer,
                **({} if policy is None else {"route": "manual"}),
            }
        )
    return records, options
