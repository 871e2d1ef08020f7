"""The published way to route on two engines: a probe of one token before each step, then it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from plain_engines import PlainEngine

from glimprouter import RouterConfig

Answer = tuple[str, int]  # text, generated tokens
Written = dict[str, int]  # tokens by model


class TwoRequestsAStep:
    """Engines without gates, asked twice a step.

    Kinder to it than the published client is (:class:`AsItsClientDoes`): prompts and answers are
    token ids, so nothing is tokenized again, and no chat template runs at each step.

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
            entropy = renormalised_entropy(probe.logprobs)
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

    async def least(self, question: str, written: Written) -> Answer:
        """As many tokens of each model as a routed answer has, by one request to each.

        No routed text comes of it: whatever routes does this work, and more.
        """
        ids = self._prompt(question)
        for model, count in written.items():
            if count:
                reply = await self._engine.ask(model, ids, count, to_the_end=False)
                ids += reply.ids
                self.requests += 1
        return "", sum(written.values())


class AsItsClientDoes:
    """The same flow as the published client asks for it: text, in chats, by OpenAI's package.

    Before each step the template is rendered and all of the text tokenized, twice.

    Attributes:
        requests: Asked so far.
    """

    def __init__(self, urls: dict[str, str], paths: dict[str, Path], config: RouterConfig) -> None:
        from openai import AsyncOpenAI

        self._paths, self._config = paths, config
        self._clients = {
            name: AsyncOpenAI(base_url=f"{url}/v1", api_key="none") for name, url in urls.items()
        }
        self.requests = 0

    async def _ask(self, model: str, question: str, begun: str, **options: Any) -> Any:
        self.requests += 1
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": begun},
        ]
        answer = await self._clients[model].chat.completions.create(
            model=str(self._paths[model]),
            messages=messages,
            temperature=0.0,
            extra_body={"add_generation_prompt": False, "continue_final_message": True},
            **options,
        )
        return answer.choices[0]

    async def published(self, question: str) -> Answer:
        """A probe of one token, then the step, by either model."""
        steps: list[str] = []
        config, written = self._config, 0
        while written < config.max_think_tokens:
            begun = "<think>\n" + "".join(f"{step}\n\n" for step in steps)
            probe = await self._ask(
                "small", question, begun, max_tokens=1, logprobs=True, top_logprobs=20
            )
            found = [one.logprob for one in probe.logprobs.content[0].top_logprobs]
            model = "large" if renormalised_entropy(found) > config.threshold else "small"
            step = await self._ask(
                model,
                question,
                begun,
                max_tokens=config.max_step_tokens,
                stop=["\n\n"],
                logprobs=True,
            )
            written += len(step.logprobs.content)
            text, end, _ = step.message.content.partition("</think>")
            if text:
                steps.append(text)
            if end:
                break
        begun = "<think>\n" + "".join(f"{step}\n\n" for step in steps) + "</think>\n\n"
        answer = await self._ask(
            "large", question, begun, max_tokens=config.max_answer_tokens, logprobs=True
        )
        return answer.message.content.strip(), written + len(answer.logprobs.content)


def renormalised_entropy(logprobs: list[float]) -> float:
    """Nats, of the candidates that were told."""
    weights = [math.exp(value - max(logprobs)) for value in logprobs]
    shares = [weight / sum(weights) for weight in weights]
    return -sum(share * math.log(share) for share in shares if share > 0)
