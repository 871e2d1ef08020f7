"""What only the engine on pages has: preemption, its choice, the model left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    LlamaConfig,
    NemotronConfig,
)

import glimprouter as gr
import hf_pairs
from glimprouter.hf import RoutedModel
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.attention.trial import why_not_paged
from glimprouter.hf.engine.paged import PagedEngine
from hf_pairs import TOKENIZER, VOCABULARY, Pair

pytestmark = pytest.mark.usefixtures("pages_of_16")

TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


def tiny(config_class: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config_class(**{**TINY, **options})).eval()


def routed(pair: Pair, **options: Any) -> RoutedModel:
    config = gr.RouterConfig(
        threshold=pair.threshold,
        temperature=0.7,
        repetition_guard=False,
        max_step_tokens=12,
        max_think_tokens=60,
        max_answer_tokens=8,
    )
    return RoutedModel(pair.small, pair.large, pair.tokenizer, config, **options)


def sectors(pair: Pair, count: int) -> int:
    """Bytes of an arena of so many sectors."""
    layouts = [kv_layout(pair.small), kv_layout(pair.large)]
    return count * gr.PagePool.default_sector_bytes(layouts)


@pytest.mark.parametrize("family", hf_pairs.FAMILIES)
def test_preempted_sequences_lose_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An arena for about two sequences: the others wait, are preempted in steps, and go on."""
    pair = hf_pairs.random_pair(family)
    prompts = pair.prompts * 2
    want = routed(pair, engine="paged").generate(prompts, seeds=range(len(prompts)))
    preempted: list[int] = []
    original = PagedEngine.preempt

    def counted(self: PagedEngine, record: Any) -> None:
        preempted.append(record.index)
        original(self, record)

    monkeypatch.setattr(PagedEngine, "preempt", counted)
    for count in range(16, 40, 6):
        model = routed(pair, engine="paged", kv_memory_bytes=sectors(pair, count))
        got = model.generate(prompts, seeds=range(len(prompts)))
        assert [r.token_ids for r in got] == [r.token_ids for r in want]
        routes = [[step.model for step in r.trace.steps] for r in got]
        assert routes == [[step.model for step in r.trace.steps] for r in want]
        assert [r.trace.steps[0].entropy for r in got] == [r.trace.steps[0].entropy for r in want]
    assert len(preempted) > 3
    print(f"{family}: {len(preempted)} preemptions")


def test_the_youngest_is_preempted_and_the_oldest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal sequences in an arena for fewer: they end in the order in which they came."""
    pair = hf_pairs.random_pair("qwen3")
    prompts = [pair.prompts[0]] * 8
    choices: list[tuple[int, list[int]]] = []  # who was preempted, and all that were in memory
    original = PagedEngine.preempt

    def noted(self: PagedEngine, record: Any) -> None:
        choices.append((record.index, sorted(self._sequences)))
        original(self, record)

    monkeypatch.setattr(PagedEngine, "preempt", noted)
    model = routed(pair, engine="paged", kv_memory_bytes=sectors(pair, 6))
    # One model, or the turns of the two would decide as well who ends first.
    options: dict[str, Any] = {"route": "small", "answer_model": "small", "temperature": 0.0}
    events = list(model.stream(prompts, **options))
    print(f"{choices=}")
    assert len(choices) > 1
    assert [index for index, _ in choices] == [max(in_memory) for _, in_memory in choices]
    assert 0 not in [index for index, _ in choices]
    assert [event.sequence for event in events if event.kind == "done"] == list(range(8))


def test_an_arena_that_cannot_hold_one_sequence_is_refused() -> None:
    pair = hf_pairs.random_pair("qwen3")
    model = routed(pair, engine="paged", kv_memory_bytes=sectors(pair, 3))
    with pytest.raises(ValueError, match=r"cannot hold the longest.*raise kv_memory_bytes"):
        model.generate(pair.prompts)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "attention of its own": (FalconConfig, {}, "cannot be served on pages"),
    "drops our arguments": (NemotronConfig, {}, "needs a PagedPass"),
    "odd head size": (LlamaConfig, {"head_dim": 24}, "head size of 24"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_pages_cannot_serve(name: str) -> None:
    """With a warning that says why, and the gathering engine in its place."""
    config_class, options, message = REFUSED[name]
    model = tiny(config_class, **options)
    before = model.config._attn_implementation
    with pytest.warns(RuntimeWarning, match=rf"small model cannot be served.*{message}|{message}"):
        chosen = RoutedModel(model, model, TOKENIZER)
    assert chosen.engine == "gather"
    with pytest.raises(ValueError, match='engine="auto" takes what serves it'):
        RoutedModel(model, model, TOKENIZER, engine="paged")
    assert model.config._attn_implementation == before
    config = gr.RouterConfig(threshold=1.0, max_think_tokens=12, max_answer_tokens=4)
    few = RoutedModel(model, model, TOKENIZER, config, engine="gather").generate([[40, 41]])
    assert few[0].token_ids


def test_softcap_and_windows_are_served() -> None:
    """Against eager attention: the one that has the softcap in every version of transformers."""
    model = tiny(Gemma2Config, head_dim=32, sliding_window=4, query_pre_attn_scalar=32)
    model.set_attn_implementation("eager")
    assert model.config.attn_logit_softcapping > 0
    assert why_not_paged(model) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_models_are_served(dtype: torch.dtype) -> None:
    pair = hf_pairs.random_pair("llama")
    model = tiny(LlamaConfig).to(dtype)
    assert why_not_paged(model) is None
    config = gr.RouterConfig(threshold=2.0, max_think_tokens=30, max_answer_tokens=4)
    chosen = RoutedModel(model, model, pair.tokenizer, config, engine="paged")
    results = chosen.generate(pair.prompts)
    assert all(result.token_ids for result in results)


def test_the_model_has_its_own_attention_back() -> None:
    pair = hf_pairs.random_pair("qwen3")
    ids = torch.tensor([pair.prompts[0]])
    with torch.inference_mode():
        before = pair.small(ids).logits
        routed(pair, engine="paged").generate(pair.prompts[:2])
        assert torch.equal(pair.small(ids).logits, before)


def test_a_failing_forward_pass_leaves_the_model_usable() -> None:
    """Pages of the broken batch go back, and the model's own attention too."""
    pair = hf_pairs.random_pair("qwen3")
    model = routed(pair, engine="paged")
    want = model.generate(pair.prompts)

    def fail(*_: Any) -> None:
        raise RuntimeError("the forward pass broke")

    handle = pair.large.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broke"):
        model.generate(pair.prompts)
    handle.remove()
    assert pair.large.config._attn_implementation == "sdpa"
    assert [r.token_ids for r in model.generate(pair.prompts)] == [r.token_ids for r in want]


def test_engine_option_is_checked() -> None:
    pair = hf_pairs.random_pair("qwen3")
    with pytest.raises(ValueError, match='"auto", "paged", "gather", "native"'):
        routed(pair, engine="pages")
    with pytest.raises(ValueError, match="kv_memory_bytes must lie in"):
        routed(pair, kv_memory_bytes=0)
