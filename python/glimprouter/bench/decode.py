"""Decoding on pages against Hugging Face `generate` of the same model, token by token."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
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


def _seconds_a_token(model: Any, run: Callable[[], object]) -> float:
    """Median time between the beginnings of two decoding passes of the model."""
    starts: list[float] = []
    handle = model.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
    try:
        run()
    finally:
        handle.remove()
    gaps = [after - before for before, after in itertools.pairwise(starts[1:])]
    return statistics.median(gaps)


def _routed(model: Any, engine: Any) -> Any:
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
    return RoutedModel(model, model, tokenizer, config, engine=engine)


def run(settings: Settings) -> list[Section]:
    """Measures both engines and `generate` at two lengths of the context, on one thread."""
    import torch

    model: Any = thin_model()
    engines = {name: _routed(model, name) for name in ("paged", "gather")}
    rows = []
    with one_torch_thread(), torch.inference_mode():
        for context, least in CONTEXTS.items():
            prompt = torch.arange(context) % 200 + 40
            contenders: dict[str, Callable[[], object]] = {
                "paged": lambda p=prompt: engines["paged"].generate([p.tolist()]),  # type: ignore[misc]
                "gather": lambda p=prompt: engines["gather"].generate([p.tolist()]),  # type: ignore[misc]
                "generate": lambda p=prompt: model.generate(  # type: ignore[misc]
                    p[None], max_new_tokens=TOKENS, do_sample=False
                ),
            }
            seconds: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(max(3, settings.rounds // 5)):
                for name, contender in contenders.items():
                    seconds[name].append(_seconds_a_token(model, contender))
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            for name in contenders:
                speedup = medians["generate"] / medians[name]
                goal = name == "paged"
                rows.append(
                    BenchmarkRow(
                        f"context {context}: {name}",
                        1e6 * medians[name],
                        speedup=None if name == "generate" else speedup,
                        goal=f"speed-up >= {least:g}" if goal else None,
                        met=speedup >= least if goal else None,
                    )
                )
    return [Section(f"a token of {LAYERS} thin layers, greedy, B=1, one thread", rows)]
