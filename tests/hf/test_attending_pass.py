"""The attention contract: another backend serves a model, and every pass of ours keeps to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import glimprouter as gr
import hf_pairs
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.attention.paged import PagedPass, packed_forward
from glimprouter.torch import AttendingPass, AttentionOptions, PassTables, arena_of

FAMILIES = ("qwen3", "llama", "gemma2", "gemma3")
LENGTHS = (19, 30)  # beyond the sliding window
SPLITS = ((7, 18), (8, 29), LENGTHS)  # tokens of both sequences after each pass


class TensorPass:
    """Keys and values of every sequence in plain tensors; attention written out in float64."""

    def __init__(self, held: dict[tuple[int, int], Any], counts: Sequence[int]) -> None:
        self._held = held  # by layer and sequence
        self._counts = counts  # new tokens of each sequence

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert mask is None
        parts = [states[0].double().split(list(self._counts), 1) for states in (query, key, value)]
        out = []
        for sequence, (queries, keys, values) in enumerate(zip(*parts, strict=True)):
            if (layer, sequence) in self._held:
                old_keys, old_values = self._held[layer, sequence]
                keys, values = torch.cat([old_keys, keys], 1), torch.cat([old_values, values], 1)
            self._held[layer, sequence] = keys, values
            out.append(self._attended(queries, keys, values, options))
        return torch.cat(out, 1).transpose(0, 1)[None].to(query.dtype)

    @staticmethod
    def _attended(
        queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        group = queries.shape[0] // keys.shape[0]
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
        scores = queries @ keys.transpose(1, 2) * options.scale
        if options.softcap:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        length, new = keys.shape[1], queries.shape[1]
        distance = torch.arange(length - new, length)[:, None] - torch.arange(length)
        seen = (distance >= 0) & (distance < (options.window or length))
        chunk = torch.arange(length) // (options.chunk_size or length)
        seen &= chunk[length - new :, None] == chunk
        scores = scores.masked_fill(~seen, -torch.inf)
        if options.sinks is not None:
            sinks = options.sinks[:, None, None].expand(-1, new, 1)
            scores = torch.cat([scores, sinks], -1)
        return scores.softmax(-1)[..., :length] @ values


def passes(prompts: Sequence[Sequence[int]]) -> Any:
    """Ids and positions ``[1, T]``, and the new tokens of each sequence, of each pass."""
    done = [0] * len(prompts)
    for ends in SPLITS:
        ids = [prompt[a:b] for prompt, a, b in zip(prompts, done, ends, strict=True)]
        places = [range(a, b) for a, b in zip(done, ends, strict=True)]
        done = list(ends)
        yield (
            torch.tensor([token for piece in ids for token in piece])[None],
            torch.tensor([place for piece in places for place in piece])[None],
            [len(piece) for piece in ids],
        )


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_another_backend_serves_a_model(family: str) -> None:
    """Two sequences side by side, in pieces: the logits of the model's own attention."""
    model = hf_pairs.random_model(family, 3, 5, "eager" if family == "gemma2" else "sdpa")
    generator = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(0, hf_pairs.VOCABULARY, (n,), generator=generator).tolist() for n in LENGTHS
    ]
    held: dict[tuple[int, int], Any] = {}
    found: list[list[torch.Tensor]] = [[] for _ in prompts]
    for ids, positions, counts in passes(prompts):
        attending = TensorPass(held, counts)
        logits = packed_forward(model, ids, positions, attending, model.config.num_hidden_layers)
        for place, piece in enumerate(logits.split(counts)):
            found[place].append(piece)
    for prompt, pieces in zip(prompts, found, strict=True):
        own = model(torch.tensor([prompt]), use_cache=False).logits[0]
        torch.testing.assert_close(torch.cat(pieces), own, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "options",
    [
        AttentionOptions(0.25),
        AttentionOptions(0.25, window=5),
        AttentionOptions(0.3, softcap=2.0),
        AttentionOptions(0.3, window=9, softcap=1.0),
        AttentionOptions(0.3, window=9, sinks=torch.tensor([0.5, -2.0, 3.0, 0.0])),
        AttentionOptions(0.25, chunk_size=6),
        AttentionOptions(0.25, window=4, chunk_size=6),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["pages", "tables"])
def test_our_passes_attend_as_the_contract_says(kind: str, options: AttentionOptions) -> None:
    """Pages and the tables of compiled graphs, against attention written out."""
    model = hf_pairs.random_model("qwen3", 3, 5)
    layout = kv_layout(model)
    pool = gr.PagePool([layout], 8 * layout.page_bytes, layout.page_bytes)
    cache = gr.KvCache(pool, len(LENGTHS))
    rows = [cache.open([[0] * end]) for end in SPLITS[0]]
    held: dict[tuple[int, int], Any] = {}
    generator = torch.Generator().manual_seed(2)
    done = (0, 0)
    for ends in SPLITS:
        if done[0]:
            for row, start, end in zip(rows, done, ends, strict=True):
                cache.append(0, row, [0] * (end - start))
        counts = [end - start for start, end in zip(done, ends, strict=True)]
        done = ends
        batch = cache.prepare(0, rows)
        attending: AttendingPass = PagedPass(pool, batch)
        if kind == "tables":
            attending = PassTables.of(pool, batch, arena_of(pool, torch.float32))
        expected = TensorPass(held, counts)
        for layer, shape in enumerate(layout.layers):
            query, key, value = (
                torch.randn(1, heads, sum(counts), shape.head_dim, generator=generator)
                for heads in (4, shape.num_kv_heads, shape.num_kv_heads)
            )
            got = attending.attend(layer, query, key, value, options)
            want = expected.attend(layer, query, key, value, options)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        cache.complete(batch)
