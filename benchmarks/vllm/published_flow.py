"""The published way to route on two engines: a probe of one token before each step, then it."""

from __future__ import annotations

import math
from typing import Any

from plain_engines import PlainEngine

from glimprouter import RouterConfig

Answer = tuple[str, int]  # text, generated tokens


class TwoRequestsAStep:
    """Engines without gates, asked twice a step.

    Kinder to it than the published client (https://github.com/Zengwh02/GlimpRouter) is: prompts and
    answers are token ids, so nothing is tokenized again, and no chat template runs at each step.

    Attributes:
        requests: Asked so far.
    """

    def __init__(self, engine: PlainEngine, tokenizer: Any, config: RouterConfig) -> None:
        self._engine, self._tokenizer, self._config = engine, tokenizer, config
        self._ends = [i for i in range(len(tokenizer)) if "\n\n" in tokenizer.decode([i])]
        self._think_end = tokenizer.convert_tokens_to_ids("</think>")
        self.requests = 0

    def _prompt(self, question: str) -> list[int]:
        chat = [{"role": "user", "content": question}]
        return list(
            self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        )

    async def published(self, question: str) -> Answer:
        """A probe of one token, then the step from its start, by either model."""
        ids, config = self._prompt(question), self._config
        start = len(ids)
        stops = [*self._ends, self._think_end]
        while len(ids) - start < config.max_think_tokens:
            probe = await self._engine.ask("small", ids, 1, candidates=20)
            weights = [math.exp(value - max(probe.logprobs)) for value in probe.logprobs]
            shares = [weight / sum(weights) for weight in weights]
            entropy = -sum(share * math.log(share) for share in shares if share > 0)
            model = "large" if entropy > config.threshold else "small"
            step = await self._engine.ask(model, ids, config.max_step_tokens, stops=stops)
            self.requests += 2
            ids += step.ids
            if step.ids[-1] == self._think_end:
                break
        return await self._answer(ids, start)

    async def _answer(self, ids: list[int], start: int) -> Answer:
        if self._think_end in ids[start:]:
            ids = ids[: start + ids[start:].index(self._think_end)]
        ids = ids + self._tokenizer("</think>\n\n", add_special_tokens=False).input_ids
        reply = await self._engine.ask("large", ids, self._config.max_answer_tokens)
        self.requests += 1
        text = self._tokenizer.decode(reply.ids, skip_special_tokens=True).strip()
        return text, len(ids) + len(reply.ids) - start

    async def alone(self, question: str) -> Answer:
        """The large model, one request."""
        self.requests += 1
        reply = await self._engine.ask("large", self._prompt(question), 400)
        text = self._tokenizer.decode(reply.ids, skip_special_tokens=True)
        return text.split("</think>")[-1].strip(), len(reply.ids)
