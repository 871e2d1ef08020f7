"""Decoding on pages against Hugging Face `generate` of the same model, token by token."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import glimprouter as gr
from glimprouter.bench.harness import BenchmarkRow, Section, Settings, one_torch_thread

CONTEXTS = {128: 1.0, 2048: 1.5}  # least speed-up over generate
LAYERS = 28
TOKENS = 40


def thin_model() -> Any:
    """28 layers so thin that attention and bookkeeping, not matrices, take the time."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=302,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        initializer_range=0.2,
    )
    model: Any = Qwen3ForCausalLM(config)
    model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@contextmanager
def _hooked(model: Any, starts: list[float]) -> Iterator[None]:
    handle = model.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _wrapped(routed: Any, starts: list[float]) -> Iterator[None]:
    """For compiled models: a hook of theirs would become part of the graph."""
    before = routed._compiled

    def watched(forward: Any) -> Any:
        def call(*arguments: Any) -> Any:
            starts.append(time.perf_counter())
            return forward(*arguments)

        return call

    routed._compiled = {name: watched(forward) for name, forward in before.items()}
    try:
        yield
    finally:
        routed._compiled = before


def _seconds_a_token(model: Any, run: Callable[[], object], routed: Any = None) -> float:
    """Median time between the beginnings of two decoding passes of the model."""
    starts: list[float] = []
    with _hooked(model, starts) if routed is None else _wrapped(routed, starts):
        run()
    gaps = [after - before for before, after in itertools.pairwise(starts[1:])]
    return statistics.median(gaps)


def _routed(model: Any, engine: Any, execution: str = "eager") -> Any:
    """A pair of the same model twice, forced to the small one."""
    from transformers import AutoTokenizer

    from glimprouter.demo_pair import small_path
    from glimprouter.hf import RoutedModel

    tokenizer = AutoTokenizer.from_pretrained(small_path(), local_files_only=True)
    config = gr.RouterConfig(
        temperature=0.0,
        route="small",
        answer_model="small",
        repetition_guard=False,
        max_step_tokens=TOKENS,
        max_think_tokens=TOKENS,
        max_answer_tokens=0,
    )
    return RoutedModel(model, model, tokenizer, config, engine=engine, execution=execution)  # type: ignore[arg-type]


def _measure(
    model: Any, engines: dict[str, Any], prompt: Any, settings: Settings
) -> dict[str, float]:
    """Seconds a token of each engine and of `generate`, in turns."""
    contenders: dict[str, tuple[Callable[[], object], Any]] = {
        name: (lambda e=engine: e.generate([prompt.tolist()]), engine if engine._compiled else None)  # type: ignore[misc]
        for name, engine in engines.items()
    }
    contenders["generate"] = (
        lambda: model.generate(prompt[None], max_new_tokens=TOKENS, do_sample=False),
        None,
    )
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(max(1, settings.rounds // 5)):
        for name, (contender, compiled) in contenders.items():
            seconds[name].append(_seconds_a_token(model, contender, compiled))
    return {name: statistics.median(values) for name, values in seconds.items()}


def run(settings: Settings) -> list[Section]:
    """Measures the engines and `generate` at two lengths of the context, on one thread."""
    import torch

    model: Any = thin_model()
    rows = []
    with one_torch_thread():
        engines = {name: _routed(model, name) for name in ("paged", "gather")}
        if settings.compile:
            engines["paged, compiled"] = _routed(model, "paged", "compiled")
        for context, least in CONTEXTS.items():
            with torch.inference_mode():
                medians = _measure(model, engines, torch.arange(context) % 200 + 40, settings)
            for name, seconds in medians.items():
                speedup = medians["generate"] / seconds
                goal = name == "paged"
                rows.append(
                    BenchmarkRow(
                        f"context {context}: {name}",
                        1e6 * seconds,
                        speedup=None if name == "generate" else speedup,
                        goal=f"speed-up >= {least:g}" if goal else None,
                        met=speedup >= least if goal else None,
                    )
                )
    return [Section(f"a token of {LAYERS} thin layers, greedy, B=1, one thread", rows)]
