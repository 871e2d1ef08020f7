"""Models whose layers differ: what is seen of them, and that a trial sees what goes wrong."""

from __future__ import annotations

import pytest
import torch

import glimprouter as gr
from families import build
from glimprouter.hf import PagedCache
from glimprouter.hf.attention.layers import kv_layout, why_not_attended
from glimprouter.hf.attention.trial import why_not_paged
from glimprouter.hf.graphs.compiled import CompiledForward


def test_layers_of_gemma_4() -> None:
    """Small heads and large ones in turn; the last two layers read what two before them keep."""
    layout = kv_layout(build("gemma4_text"))
    assert [layer.head_dim for layer in layout.layers] == [16, 32] * 3
    assert [layer.shares for layer in layout.layers] == [None] * 4 + [2, 3]
    kept = sum(2 * layer.num_kv_heads * layer.head_dim for layer in layout.layers[:4])
    assert layout.page_bytes == 4 * layout.page_size * kept


def test_a_layer_that_attends_twice() -> None:
    reason = "ValueError: its layer 0 attends more than once in a pass"
    assert why_not_paged(build("diffllama")) == reason


def test_head_sizes_that_attention_does_not_read() -> None:
    layers = [
        gr.LayerShape(num_kv_heads=1, head_dim=16),
        gr.LayerShape(num_kv_heads=1, head_dim=32, value_dim=24),
    ]
    layout = gr.KvLayout(layers=layers, page_size=4, dtype="float32")
    assert why_not_attended(layout) == "its head size of 24 is no multiple of 16"


def test_layers_that_do_not_come_by() -> None:
    reason = "0 of its layers use the attention that it is configured for"
    assert why_not_paged(build("bloom")) == f"ValueError: {reason}"


@pytest.mark.parametrize("what", ["_chunk_size", "asked_of_a_cache"])
def test_what_llama_4_needs_shows_in_the_trial(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, and queries that grow with their position: neither is told to attention."""
    model = build("llama4_text")
    model.config.attention_chunk_size = 8192
    assert why_not_paged(model) is None
    if what == "_chunk_size":
        monkeypatch.setattr(f"glimprouter.hf.attention.function.{what}", lambda module: 0)
    else:
        monkeypatch.setattr(f"glimprouter.hf.attention.paged.{what}", lambda *arguments: {})
    assert "differ by" in str(why_not_paged(model))


@pytest.mark.parametrize("family", ["gemma4_text", "llama4_text", "deepseek_v3"])
def test_compiled(family: str) -> None:
    """Two sequences, a prompt and then a token each, against full passes without a cache."""
    model = build(family)
    compiled = CompiledForward(model, backend="eager")
    layout = kv_layout(model)
    pool = gr.PagePool([layout], 6 * layout.page_bytes, layout.page_bytes)
    cache = gr.KvCache(pool, 2)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 90, (n,), generator=generator).tolist() for n in (45, 9)]
    rows = [cache.open([text[:-1]]) for text in texts]
    batch = cache.prepare(0, rows)
    compiled(pool, batch)
    cache.complete(batch)
    for row, text in zip(rows, texts, strict=True):
        cache.append(0, row, text[-1:])
    got = compiled(pool, cache.prepare(0, rows))
    with torch.inference_mode():
        want = torch.stack([model(torch.tensor([text])).logits[0, -1] for text in texts])
    assert (got - want).abs().max() < 1e-4 * want.std()


def test_a_paged_cache_refuses_layers_that_share() -> None:
    """Transformers cuts what such layers are given to the last token, and masks with it."""
    model = build("gemma4_text")
    model.set_attn_implementation("glimprouter")
    with pytest.raises(ValueError, match=r"layers \[4, 5\] read the keys of earlier ones"):
        PagedCache(model)
