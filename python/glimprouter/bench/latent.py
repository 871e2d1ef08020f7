"""A decode step of multi-head latent attention: latent pages, expanded ones, and torch."""

from __future__ import annotations

from collections.abc import Callable

import glimprouter as gr
from glimprouter.bench.harness import BenchmarkRow, Section, Settings, measure, one_torch_thread

# Of DeepSeek V2 Lite; V3 has 128 heads of the same sizes.
HEADS, LATENT, ROTATED, KEYS, VALUES = 16, 512, 64, 128, 128
CONTEXTS = (512, 4096)
LATENT_PAGES, EXPANDED = "latent pages", "expanded pages"
TRANSFORMERS = "transformers: expanded at every pass"


class _Pages:
    """One layer's pages, full of random keys, and a sequence with one new token."""

    def __init__(self, layer: gr.LayerShape, context: int) -> None:
        import torch

        from glimprouter.hf.attention.layers import PAGE_SIZE

        layout = gr.KvLayout(layers=[layer], page_size=PAGE_SIZE, dtype="bfloat16")
        self.pool = gr.PagePool([layout], (context // PAGE_SIZE + 4) * layout.page_bytes)
        arena = torch.from_numpy(self.pool.memory).view(torch.bfloat16)
        arena.normal_(generator=torch.Generator().manual_seed(0))
        cache = gr.KvCache(self.pool, 1)
        row = cache.open([[0] * (context - 1)])
        cache.complete(cache.prepare(0, [row]))
        cache.append(0, row, [0])
        self.batch = cache.prepare(0, [row])


def contenders(context: int) -> dict[str, Callable[[], object]]:
    """One token's attention in one layer, from its query to what the output projection takes.

    Args:
        context: Tokens, the new one included.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from glimprouter.hf.attention.latent import Expansion, Given, latent_attention
    from glimprouter.hf.attention.paged import PagedPass
    from glimprouter.torch import AttentionOptions

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    generator = torch.Generator().manual_seed(1)
    weight = random(HEADS, KEYS + VALUES, LATENT) / LATENT**0.5
    expansion = Expansion(weight[:, :KEYS], weight[:, KEYS:])
    options = AttentionOptions((KEYS + ROTATED) ** -0.5)
    query = random(1, HEADS, 1, KEYS + ROTATED)
    given = Given(random(1, 1, 1, LATENT), random(1, 1, 1, ROTATED))
    latent = _Pages(
        gr.LayerShape(num_kv_heads=1, head_dim=LATENT + ROTATED, value_dim=LATENT, latent=True),
        context,
    )
    expanded = _Pages(
        gr.LayerShape(num_kv_heads=HEADS, head_dim=KEYS + ROTATED, value_dim=VALUES), context
    )
    key, value = random(1, HEADS, 1, KEYS + ROTATED), random(1, HEADS, 1, VALUES)
    past, turned = random(1, 1, context, LATENT), random(1, 1, context, ROTATED)
    flat = weight.flatten(0, 1)

    def in_torch() -> torch.Tensor:
        states = (past @ flat.T).view(1, context, HEADS, KEYS + VALUES).transpose(1, 2)
        keys = torch.cat([states[..., :KEYS], turned.expand(-1, HEADS, -1, -1)], -1)
        return scaled_dot_product_attention(query, keys, states[..., KEYS:], scale=options.scale)

    over_latent, over_expanded = (PagedPass(own.pool, own.batch) for own in (latent, expanded))
    return {
        LATENT_PAGES: lambda: latent_attention(0, query, given, expansion, over_latent, options),
        EXPANDED: lambda: over_expanded.attend(0, query, key, value, options),
        TRANSFORMERS: in_torch,
    }


def run(settings: Settings) -> list[Section]:
    """Measures one layer's decode step at two contexts, on one thread."""
    import torch

    rows = []
    sizes = {LATENT_PAGES: LATENT + ROTATED, EXPANDED: HEADS * (KEYS + ROTATED + VALUES)}
    sizes[TRANSFORMERS] = LATENT + ROTATED
    with one_torch_thread(), torch.inference_mode():
        for context in CONTEXTS:
            timed = contenders(context)
            timings = measure(timed, settings)
            for name in timed:
                read = 2 * context * sizes[name]
                rows.append(
                    BenchmarkRow(
                        f"context {context}: {name}, {2 * sizes[name]} bytes a token",
                        timings.microseconds(name),
                        gigabytes_per_second=read / timings.microseconds(name) / 1e3,
                        speedup=None if name == TRANSFORMERS else timings.ratio(TRANSFORMERS, name),
                    )
                )
    title = f"latent attention of one token and {HEADS} heads, one layer, bfloat16, one thread"
    return [Section(title, rows)]
