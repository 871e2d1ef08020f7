"""The routed demo pair, one sequence at a time and sixteen, and `generate` of the large model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import glimprouter as gr
from glimprouter.bench.harness import BenchmarkRow, Section, Settings, one_torch_thread

BATCH = 16
THINK, ANSWER = 400, 60  # tokens
LEAST_SPEEDUP = 3.0  # of a batch over one sequence
NAMES = ("generate, the large model alone", "routed, batch 1", f"routed, batch {BATCH}")


def _pair() -> tuple[Any, Any, Any]:
    """Both models and their tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from glimprouter.demo_pair import large_path, small_path

    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        for path in (small_path(), large_path())
    ]
    small, large = (model.eval() for model in models)
    tokenizer = AutoTokenizer.from_pretrained(small_path(), local_files_only=True)
    return small, large, tokenizer


def _contenders(prompts: list[list[int]]) -> dict[str, Callable[[], int]]:
    """Each writes some sequences and returns the number of tokens."""
    import torch

    from glimprouter.demo_pair import RECOMMENDED_THRESHOLD
    from glimprouter.hf import RoutedModel

    small, large, tokenizer = _pair()
    config = gr.RouterConfig(
        threshold=RECOMMENDED_THRESHOLD,
        temperature=0.0,
        max_think_tokens=THINK,
        max_answer_tokens=ANSWER,
    )

    def routed(batch: int, count: int) -> Callable[[], int]:
        model = RoutedModel(small, large, tokenizer, config, engine="paged", max_sequences=batch)
        return lambda: sum(len(r.token_ids) for r in model.generate(prompts[:count]))

    def alone() -> int:
        written = 0
        for prompt in prompts[:2]:
            output = large.generate(
                torch.tensor([prompt]), do_sample=False, max_new_tokens=THINK, pad_token_id=0
            )
            written += output.shape[1] - len(prompt)
        return written

    return dict(zip(NAMES, (alone, routed(1, 4), routed(BATCH, len(prompts))), strict=True))


def _prompts(count: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    from glimprouter.demo_pair import small_path, task

    tokenizer: Any = AutoTokenizer.from_pretrained(small_path(), local_files_only=True)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.prompt}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for problem in task.held_out_problems(count, seed=3)
    ]


def run(settings: Settings) -> list[Section]:
    """Measures seconds a token of the three, in turns, on one thread."""
    with one_torch_thread():
        # More than a batch, so that rows are taken again when sequences end.
        contenders = _contenders(_prompts(max(BATCH, settings.batch // 2)))
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(max(1, settings.rounds // 5)):
            for name, contender in contenders.items():
                start = time.perf_counter()
                written = contender()
                seconds[name].append((time.perf_counter() - start) / written)
    alone, single, batch = (statistics.median(seconds[name]) for name in NAMES)
    rows = [
        BenchmarkRow(NAMES[0], 1e6 * alone),
        BenchmarkRow(
            NAMES[1],
            1e6 * single,
            speedup=alone / single,
            goal="speed-up over generate > 1",
            met=alone > single,
        ),
        BenchmarkRow(
            NAMES[2],
            1e6 * batch,
            speedup=single / batch,
            goal=f"speed-up over batch 1 >= {LEAST_SPEEDUP:g}",
            met=single / batch >= LEAST_SPEEDUP,
        ),
    ]
    return [Section("a token of the routed demo pair, greedy, one thread", rows)]
