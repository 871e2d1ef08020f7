"""The routed demo pair beside the large model alone and `generate`, for several batches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import glimprouter as gr
from glimprouter.bench.acceptance import accepted_beside_bound
from glimprouter.bench.harness import BenchmarkRow, Section, Settings, one_torch_thread

SIZES = (1, 4, 16, 64)
THINK, ANSWER = 400, 60  # tokens
GENERATE, ASSISTED = "generate, large model alone", "assisted generation"
ALONE, ALONE_DRAFTS = "large alone", "large alone, drafts"
ROUTED, ROUTED_DRAFTS = "routed", "routed, drafts"
# Speed over the large model alone in our own engine; what the project wants of drafts.
GOALS = {1: 2.2, 4: 2.0, 16: 2.0, 64: 2.0}


class Pair(NamedTuple):
    """The embedded pair."""

    small: Any
    large: Any
    tokenizer: Any


def load_pair() -> Pair:
    """Both models in float32, and their tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from glimprouter.demo_pair import large_path, small_path

    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        for path in (small_path(), large_path())
    ]
    small, large = (model.eval() for model in models)
    tokenizer = AutoTokenizer.from_pretrained(small_path(), local_files_only=True)
    return Pair(small, large, tokenizer)


def prompts_of(pair: Pair, count: int) -> list[list[int]]:
    """Ids of held-out problems."""
    from glimprouter.demo_pair import task

    return [
        pair.tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.prompt}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for problem in task.held_out_problems(count, seed=3)
    ]


def routed_pair(pair: Pair, rows: int, drafts: Any, **config: Any) -> Any:
    """A RoutedModel of so many rows, greedy unless told otherwise."""
    from glimprouter.demo_pair import RECOMMENDED_THRESHOLD
    from glimprouter.hf import RoutedModel

    options = {
        "threshold": RECOMMENDED_THRESHOLD,
        "temperature": 0.0,
        "max_think_tokens": THINK,
        "max_answer_tokens": ANSWER,
        **config,
    }
    return RoutedModel(
        *pair, gr.RouterConfig(**options), engine="paged", max_sequences=rows, drafts=drafts
    )


def _generate(
    pair: Pair, prompts: Sequence[list[int]], rows: int, **options: Any
) -> Callable[[], int]:
    """`generate` of the large model in batches padded on the left; tokens up to each end."""
    import torch

    ends = pair.large.generation_config.eos_token_id
    end_ids = set([ends] if isinstance(ends, int) else ends or ())

    def call() -> int:
        written = 0
        for start in range(0, len(prompts), rows):
            batch = prompts[start : start + rows]
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in batch])
            mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch])
            output = pair.large.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=THINK,
                pad_token_id=0,
                **options,
            )
            for row in output[:, width:].tolist():
                end = next((at for at, token in enumerate(row) if token in end_ids), len(row) - 1)
                written += end + 1
        return written

    return call


def _contenders(pair: Pair, rows: int, count: int) -> dict[str, Callable[[], int]]:
    """Each writes some sequences, so many at a time, and returns the number of tokens."""
    prompts = prompts_of(pair, count)
    few = prompts[: max(2, rows)]

    def engine(drafts: Any, **config: Any) -> Callable[[], int]:
        model = routed_pair(pair, rows, drafts, **config)
        return lambda: sum(len(result.token_ids) for result in model.generate(prompts))

    found = {GENERATE: _generate(pair, few, rows)}
    if rows == 1:  # transformers assists one sequence at a time
        found[ASSISTED] = _generate(pair, few, rows, assistant_model=pair.small)
    return {
        **found,
        ALONE: engine(0, route="large"),
        ALONE_DRAFTS: engine("auto", route="large"),
        ROUTED: engine(0),
        ROUTED_DRAFTS: engine("auto"),
    }


def _section(pair: Pair, rows: int, rounds: int) -> Section:
    # More sequences than rows, so that rows are taken again when sequences end.
    contenders = _contenders(pair, rows, max(4, 2 * rows))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            written = contender()
            seconds[name].append((time.perf_counter() - start) / written)
    alone = seconds[ALONE]
    table = []
    for name, own in seconds.items():
        speedup = statistics.median(a / b for a, b in zip(alone, own, strict=True))
        goal = GOALS[rows] if name == ROUTED_DRAFTS else None
        table.append(
            BenchmarkRow(
                name,
                1e6 * statistics.median(own),
                speedup=speedup,
                goal=None if goal is None else f"speed-up over large alone >= {goal:g}",
                met=None if goal is None else speedup >= goal,
            )
        )
    title = f"a token of the demo pair, greedy, one thread, {rows} at a time; over {ALONE}"
    return Section(title, table)


def run(settings: Settings) -> list[Section]:
    """Measures seconds a token in turns, on one thread; and how often drafts hold."""
    with one_torch_thread():
        pair = load_pair()
        rounds = max(1, settings.rounds // 5)
        sizes = [rows for rows in SIZES if rows <= settings.batch]
        sections = [_section(pair, rows, rounds) for rows in sizes]
        sections.append(accepted_beside_bound(pair, routed_pair, prompts_of(pair, settings.batch)))
    return sections
