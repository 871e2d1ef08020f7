"""Decoding with states beside pages against the models' own caches and a batch of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import glimprouter as gr
from glimprouter.bench.harness import BenchmarkRow, Section, Settings, measure, one_torch_thread

BATCHES = {1: 0.8, 8: 2.0}  # least speed-up over one sequence after another
CONTEXT = 64
LAYERS = 12


def hybrid_model() -> Any:
    """Twelve layers, every fourth one attends; the others are gated delta nets."""
    import torch
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        vocab_size=302,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        linear_num_key_heads=4,
        linear_num_value_heads=8,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        max_position_embeddings=4096,
        initializer_range=0.2,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    model: Any = Qwen3_5ForCausalLM(config)
    return model.eval()


def _on_pages(model: Any, prompts: list[list[int]]) -> Callable[[], object]:
    """One more token of each sequence: states in slots, keys and values on pages."""
    from glimprouter.hf.attention.paged import kv_layout
    from glimprouter.hf.attention.stateful import stateful_forward
    from glimprouter.hf.state.form import find_state_form
    from glimprouter.hf.state.sequences import SequenceStates
    from glimprouter.hf.state.slots import StateSlots

    form = find_state_form(model)
    assert form is not None
    layout = kv_layout(model, form)
    pages = len(prompts) * (4096 // layout.page_size + 1)
    pool = gr.PagePool([layout], pages * layout.page_bytes, layout.page_bytes)
    cache = gr.KvCache(pool, len(prompts))
    states = SequenceStates(StateSlots(form, len(prompts)), 0)
    rows = [cache.open([prompt]) for prompt in prompts]
    for row in rows:
        states.open(row)

    def decode() -> None:
        batch = cache.prepare(0, rows)
        stateful_forward(model, pool, batch, states)
        cache.complete(batch)
        for row in rows:
            cache.append(0, row, [7])

    decode()
    return decode


def _contenders(model: Any, batch: int) -> dict[str, Callable[[], object]]:
    import torch
    from transformers import DynamicCache

    from glimprouter.hf.engine.native_runner import CallForm, NativeRunner

    prompts = [[40 + (row + at) % 200 for at in range(CONTEXT)] for row in range(batch)]
    runner = NativeRunner("small", model, batch, CallForm("past_key_values", False, True, False), 0)
    slots = list(range(batch))
    runner.forward(slots, prompts)
    dynamic = DynamicCache(config=model.config)
    model(torch.tensor(prompts), past_key_values=dynamic, use_cache=True, logits_to_keep=1)
    token = torch.full((batch, 1), 7)
    return {
        "pages": _on_pages(model, prompts),
        "own caches, one after another": lambda: runner.forward(slots, [[7]] * batch),
        "transformers, rows of equal length": lambda: model(
            token, past_key_values=dynamic, use_cache=True, logits_to_keep=1
        ),
    }


def run(settings: Settings) -> list[Section]:
    """Measures a decode pass of one and of eight sequences, on one thread."""
    import torch

    model, rows = hybrid_model(), []
    with one_torch_thread(), torch.inference_mode():
        for batch, least in BATCHES.items():
            contenders = _contenders(model, batch)
            timings = measure(contenders, settings)
            pages, alone, _ = contenders
            for name in contenders:
                faster = timings.ratio(alone, name)
                goal = name == pages
                rows.append(
                    BenchmarkRow(
                        f"B = {batch}: {name}",
                        timings.microseconds(name),
                        speedup=None if name == alone else faster,
                        goal=f"speed-up over own caches >= {least:g}" if goal else None,
                        met=faster >= least if goal else None,
                    )
                )
    return [Section(f"a decode pass of {LAYERS} hybrid layers, one thread", rows)]
