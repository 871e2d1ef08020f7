"""The records of prompts, and the options that open them in a router."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glimprouter.boundary import StepBoundary
from glimprouter.config import DEFAULT_ANSWER_TOKENS, DEFAULT_THINK_TOKENS, RouterConfig
from glimprouter.hf.pair.asides import EncodedAside
from glimprouter.hf.pair.budgets import budgets_of
from glimprouter.hf.pair.prompts import EncodedPrompt, Prompt, TemplateOptions, encode_prompts
from glimprouter.hf.pair.standing import start_of
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.run.options import run_config
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.policies import Policy
from glimprouter.trace import Trace

# Of a sequence that nobody knows yet: the default budgets, and as long a prompt as an answer.
_PLANNED_TOKENS = DEFAULT_THINK_TOKENS + 2 * DEFAULT_ANSWER_TOKENS


@dataclass(frozen=True)
class Beginnings:
    """What the sequences of a run have in common when they begin.

    Attributes:
        config: Options of the pair.
        overrides: Fields of it that this run has set.
        policy: Of the pair; None where thresholds decide.
        tokenizers: Of the small and the large model.
        boundaries: Likewise.
        contexts: Positions of each model, by name.
        record_options: Fields of a record that the pair decides.
        aside: What the large model reads behind steps for the policy; None for nothing.
    """

    config: RouterConfig
    overrides: Mapping[str, Any]
    policy: Policy | None
    tokenizers: Sequence[Any]
    boundaries: Sequence[StepBoundary]
    contexts: Mapping[str, int]
    record_options: Mapping[str, Any]
    aside: EncodedAside | None = None

    def begin(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        template_options: TemplateOptions,
        first: int = 0,
        substream: int | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> tuple[list[SequenceRecord], list[dict[str, Any]]]:
        """A record for each prompt, and the options of ``StepRouter.open`` that open it.

        Args:
            prompts: Of any form.
            seeds: One a prompt.
            template_options: Handed to the chat templates.
            first: Index of the first one in the run.
            substream: Random key of each; None for its index.
            overrides: Fields of the config for these alone.

        Raises:
            TypeError: An option that is none, no prompt, or one of the wrong type.
            ValueError: A prompt that leaves no room, or nothing to write; an option out of range.
        """
        changes = {**self.overrides, **(overrides or {})}
        config = run_config(self.config, changes, self.policy)
        policy = None
        if self.policy is not None and config.route == "auto":
            policy = self.policy.name
        named = dict(zip(MODELS, self.tokenizers, strict=True))
        encoded = encode_prompts(prompts, named, template_options)
        records: list[SequenceRecord] = []
        options: list[dict[str, Any]] = []
        for index, (prompt, seed) in enumerate(zip(encoded, seeds, strict=True), start=first):
            key = index if substream is None else substream
            record, own = self._begin(index, prompt, config, seed, key, policy)
            records.append(record)
            options.append({**changes, **own})
        return records, options

    def _begin(
        self,
        index: int,
        prompt: EncodedPrompt,
        config: RouterConfig,
        seed: int,
        substream: int,
        policy: str | None,
    ) -> tuple[SequenceRecord, dict[str, Any]]:
        closing = len(self.boundaries[0].close_ids)
        thinks = bool(self.record_options["thinks"])
        asked = 0 if self.aside is None or policy is None else len(self.aside.question)
        budgets = budgets_of(
            index, prompt, config, self.contexts, closing, thinks=thinks, asked=asked
        )
        start = start_of(index, prompt, self.boundaries, budgets)
        trace = Trace(
            prompt=prompt.text,
            seed=seed,
            substream=substream,
            threshold=config.threshold if policy is None else math.nan,
            policy=policy,
            think_limit=budgets.think,
            answer_limit=budgets.answer,
            derived_limits=list(budgets.derived),
            answer_model=config.answer_model,
        )
        record = SequenceRecord(
            index,
            prompt,
            trace,
            max_new_tokens=budgets.think + max(budgets.answer + closing, asked),
            answering=start.answering,
            **self.record_options,
        )
        options = {
            "seed": seed,
            "substream": substream,
            "start": start,
            "max_think_tokens": budgets.think,
            "max_answer_tokens": budgets.answer,
            **({} if policy is None else {"route": "manual"}),
        }
        return record, options

    def unknown(self) -> SequenceRecord:
        """What memory is planned for where no prompt is known yet: never one of the run's own."""
        length = min(_PLANNED_TOKENS, *self.contexts.values())
        nothing = EncodedPrompt(None, [], [])
        return SequenceRecord(0, nothing, Trace(), max_new_tokens=length, **self.record_options)
