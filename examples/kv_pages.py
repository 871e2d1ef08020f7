"""Keys and values in pages, in an engine of your own: hand-offs without computing a token twice.

The models are stand-ins that give random keys and values; what matters is who computes what. Layer
by layer (``append_kv``, ``paged_attention``) is how a forward pass runs; all layers at once
(``append_kv_layers``, ``gather_kv_layers``) is how keys and values come from and go to an engine
that has them already.
"""

from __future__ import annotations

import torch

import glimprouter as gr
from glimprouter.kv import append_kv_layers, gather_kv_layers, stage_batch

HEADS, HEAD_DIM = 4, 32  # query heads
LAYOUTS = [
    gr.KvLayout(num_layers=2, num_kv_heads=2, head_dim=HEAD_DIM, page_size=16, dtype="float32"),
    gr.KvLayout(num_layers=4, num_kv_heads=4, head_dim=HEAD_DIM, page_size=16, dtype="bfloat16"),
]


def forward(pool: gr.PagePool, batch: gr.RaggedBatch) -> torch.Tensor:
    """One forward pass over exactly the tokens that the model has not seen."""
    layout, tokens = LAYOUTS[batch.model], len(batch.ids)
    hidden = torch.randn(tokens, HEADS, HEAD_DIM)
    stage_batch(pool, batch, HEADS, hidden)  # on a GPU: a graph may be captured from here on
    for layer, shape in enumerate(layout.layers):
        keys, values = torch.randn(2, tokens, shape.num_kv_heads, HEAD_DIM)
        gr.append_kv(pool, layer, batch, keys, values)
        out = torch.empty_like(hidden)
        gr.paged_attention(pool, layer, batch, hidden, out, scale=HEAD_DIM**-0.5)
        hidden = out
    return hidden[batch.last_rows]  # of each sequence's last token: what becomes logits


def main() -> None:
    """A small and a large model take turns over one sequence."""
    sector = gr.PagePool.default_sector_bytes(LAYOUTS)
    pool = gr.PagePool(LAYOUTS, 32 * sector)
    cache = gr.KvCache(pool, max_sequences=2)
    prompt = list(range(40))
    sequence = cache.open([prompt, prompt])
    for turn, model in enumerate((0, 0, 1, 0)):
        batch = cache.prepare(model, [sequence])
        forward(pool, batch)
        cache.complete(batch)
        print(f"turn {turn}: model {model} computed {len(batch.ids)} tokens")
        cache.append(model, sequence, [100 + turn])  # what it wrote

    # The same keys and values as contiguous tensors of all layers, and back into another sequence.
    known = cache.num_computed_tokens(0, sequence)
    shape = (LAYOUTS[0].num_layers, known, LAYOUTS[0].layers[0].num_kv_heads, HEAD_DIM)
    keys, values = torch.empty(shape), torch.empty(shape)
    gather_kv_layers(pool, 0, cache.pages(0, sequence), keys, values)
    twin = cache.open([prompt + cache.generated(0, sequence)[: known - len(prompt)]] * 2)
    batch = cache.prepare(0, [twin])
    append_kv_layers(pool, batch, keys, values)
    cache.complete(batch)
    print(f"{known} tokens of {LAYOUTS[0].num_layers} layers copied without a forward pass")


if __name__ == "__main__":
    main()
