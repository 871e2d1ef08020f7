"""Decoding with states beside pages against the models' own caches and a batch of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import glimprouter as gr
from glimprouter.bench.harness import BenchmarkRow, Section, Settings, measure, one_torch_thread

BATCHES = {1: 0.8, 8: 2.0}  # least speed-up over one sequence after another
CONTEXT = 64
TOKENS = 4096  # of a sequence at most
LAYERS = 12
PAGES, OWN = "pages", "own caches, one after another"


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


class Decoding:
    """Sequences of one model on pages, with states in slots: a pass is one more token of each.

    Attributes:
        form: Of the model's states.
    """

    def __init__(self, model: Any, prompts: list[list[int]], tokens: int, device: str) -> None:
        """Prompts are computed.

        Args:
            model: That keeps states.
            prompts: Of equal length.
            tokens: Room of each sequence.
            device: Of the pages.
        """
        from glimprouter.hf.attention.layers import kv_layout
        from glimprouter.hf.attention.stateful import stateful_forward
        from glimprouter.hf.state.form import find_state_form
        from glimprouter.hf.state.sequences import SequenceStates
        from glimprouter.hf.state.slots import StateSlots

        form = find_state_form(model)
        assert form is not None
        self.form = form
        layout = kv_layout(model, form)
        pages = 1 + len(prompts) * (tokens // layout.page_size + 1)
        self._model, self._device = model, device
        self._pool = gr.PagePool([layout], pages * layout.page_bytes, layout.page_bytes, device)
        self._cache = gr.KvCache(self._pool, len(prompts))
        self._states = SequenceStates(StateSlots(form, 2 * len(prompts)), 1)
        self._rows = [self._cache.open([prompt]) for prompt in prompts]
        for row in self._rows:
            self._states.open(row)
        self._forward = stateful_forward
        self.eager()

    def eager(self) -> None:
        """One pass by the model's own code."""
        batch = self._cache.prepare(0, self._rows)
        self._forward(self._model, self._pool, batch, self._states)
        self._land(batch)

    def graphs(self) -> Callable[[], None]:
        """Passes as graphs."""
        from glimprouter.hf.graphs.pass_graphs import PassGraphs
        from glimprouter.hf.graphs.recorders import recorder_for

        place = ("measured", self._model, self._pool, 0, len(self._rows))
        graphs = PassGraphs(*place, recorder_for(self._device), slots=self._states.slots)

        def replay() -> None:
            batch = self._cache.prepare(0, self._rows)
            graphs(
                batch, batch.last_rows, self._states, self._rows[:1]
            )  # one of them begins a step
            self._land(batch)
            assert graphs.refused is None, graphs.refused

        return replay

    def _land(self, batch: gr.RaggedBatch) -> None:
        self._cache.complete(batch)
        for row in self._rows:
            self._cache.append(0, row, [7])


def contenders(model: Any, batch: int, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """A decode pass of so many sequences on pages and by what else there is, by name.

    Args:
        model: That keeps states, on the device.
        batch: Sequences.
        device: Of the pages.
    """
    import torch
    from transformers import DynamicCache

    from glimprouter.hf.engine.native_runner import CallForm, NativeRunner

    prompts = [[40 + (row + at) % 200 for at in range(CONTEXT)] for row in range(batch)]
    decoding = Decoding(model, prompts, TOKENS, device)
    runner = NativeRunner("small", model, batch, CallForm("past_key_values", False, True, False), 0)
    slots = list(range(batch))
    runner.forward(slots, prompts)
    dynamic = DynamicCache(config=model.config)
    ids = torch.tensor(prompts, device=model.device)
    model(ids, past_key_values=dynamic, use_cache=True, logits_to_keep=1)
    token = ids[:, :1].clone()
    return {
        PAGES: decoding.eager,
        **({} if device == "cpu" else {"pages, graphs": decoding.graphs()}),
        OWN: lambda: runner.forward(slots, [[7]] * batch),
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
            timed = contenders(model, batch)
            timings = measure(timed, settings)
            for name in timed:
                faster = timings.ratio(OWN, name)
                goal = name == PAGES
                rows.append(
                    BenchmarkRow(
                        f"B = {batch}: {name}",
                        timings.microseconds(name),
                        speedup=None if name == OWN else faster,
                        goal=f"speed-up over own caches >= {least:g}" if goal else None,
                        met=faster >= least if goal else None,
                    )
                )
    return [Section(f"a decode pass of {LAYERS} hybrid layers, one thread", rows)]
