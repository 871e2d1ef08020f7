"""Whether a model can be served on pages: found by trying."""

from __future__ import annotations

from typing import Any

import torch

from glimprouter.hf.attention.function import ATTENTION_NAME, own_attention
from glimprouter.hf.attention.fused_layers import FusedLayers
from glimprouter.hf.attention.paged import kv_layout, paged_forward
from glimprouter.hf.pair.devices import torch_device
from glimprouter.hf.pair.facts import rope_depends_on_length
from glimprouter.kv import KvCache, KvLayout, PagePool

_PROBE_LENGTHS = (7, 5)  # two sequences side by side, one of them in two pieces
# Root mean square of the difference over the spread of the logits. Rounding in the narrow types is
# some hundredths; an attention that is not the model's own gives about 1.
_PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.1}


def why_not_paged(model: Any, device: str = "cpu", fused: FusedLayers | None = None) -> str | None:
    """Why a model cannot be served on pages of a device, or None when it can: found by trying.

    Two short sequences are computed side by side, in pieces, and compared with the model's own
    attention: a model that drops our arguments, has attention sinks, or keeps other state differs.

    Args:
        model: A model of transformers.
        device: The device of the pages.
        fused: Tried too: layers in their fused form on pages, against the model's own.
    """
    if str(model.device) != torch_device(device):
        return f"it is on {model.device}, and the pages are on {device}"
    if rope_depends_on_length(model.config.get_text_config()):
        return (
            "its rotary embeddings (longrope) depend on the longest sequence of a pass, and packed"
            " batches hold several"
        )
    try:
        layout = kv_layout(model)
        if layout.head_dim % 16 != 0:
            return f"its head size of {layout.head_dim} is no multiple of 16"
        error = _probe(model, layout, device, fused)
    except Exception as failure:  # whatever a model's code does with an attention it does not know
        return f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
    tolerance = _PROBE_TOLERANCE[model.dtype]
    if not error <= tolerance:
        return f"its logits differ by {error:.2g} of their spread from its own attention's"
    return None


@torch.inference_mode()
def _probe(model: Any, layout: KvLayout, device: str, fused: FusedLayers | None) -> float:
    """Difference to the model's own attention: root mean square over the spread of the logits."""
    width = model.get_output_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(0, width, (length,), generator=generator).tolist()
        for length in _PROBE_LENGTHS
    ]
    pool = PagePool([layout], 8 * layout.page_bytes, layout.page_bytes, device)
    cache = KvCache(pool, len(prompts))
    rows = [cache.open([prompt[:3]]) for prompt in prompts]
    config = model.config.get_text_config()
    own = config._attn_implementation
    reference = "eager" if own == ATTENTION_NAME else own  # ours would be compared with itself
    worst = 0.0
    for start, end in ((0, 3), (3, 4), (4, None)):
        if start:
            for row, prompt in zip(rows, prompts, strict=True):
                cache.append(0, row, prompt[start:end])
        batch = cache.prepare(0, rows)
        logits = paged_forward(model, pool, batch, fused)
        cache.complete(batch)
        for row, prompt in enumerate(prompts):
            with own_attention(config, reference):
                output = model(torch.tensor([prompt[:end]], device=model.device), use_cache=False)
            expected = output.logits[0, -1].float()
            spread = float(expected.std()) + 1e-6
            difference = (logits[row].float() - expected).square().mean().sqrt()
            if not torch.isfinite(difference):
                return float("inf")
            worst = max(worst, float(difference) / spread)
    return worst
