"""Sizes of captured passes hold what they are taken for, and groups keep to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glimprouter as gr
from glimprouter.hf.attention.gathered import MANY_TOKENS
from glimprouter.hf.engine.pass_groups import grouped
from glimprouter.hf.graphs.sizes import (
    MOST_SEEN,
    MOST_TOKENS,
    Piece,
    PieceSums,
    SizeRule,
    padded_size,
)

# New tokens of a sequence and how many it had before.
PIECES = st.tuples(
    st.one_of(st.integers(1, 9), st.integers(1, 300)),
    st.one_of(st.integers(0, 64), st.integers(0, 4000)),
)
DECODED = st.tuples(st.just(1), st.integers(1, 200))
BATCHES = st.one_of(st.lists(PIECES, min_size=1, max_size=12), st.lists(DECODED, min_size=1))
PAGE_SIZES = st.sampled_from([1, 4, 16, 64])


def layout_of(page_size: int, **others: Any) -> gr.KvLayout:
    shape = {"num_kv_heads": 1, "head_dim": 16, "value_dim": 16, **others}
    return gr.KvLayout(layers=[gr.LayerShape(**shape)], page_size=page_size, dtype="bfloat16")


def prepared(pieces: list[tuple[int, int]], page_size: int) -> gr.RaggedBatch:
    """A pass of a real cache over such sequences."""
    layout = layout_of(page_size)
    pages = sum(-(-(new + before) // page_size) for new, before in pieces)
    pool = gr.PagePool([layout], (pages + 1) * layout.page_bytes, layout.page_bytes)
    cache = gr.KvCache(pool, len(pieces))
    rows = []
    for new, before in pieces:
        rows.append(cache.open([[3] * (before or new)]))
        if before:
            cache.complete(cache.prepare(0, rows[-1:]))
            cache.append(0, rows[-1], [4] * new)
    return cache.prepare(0, rows)


@settings(deadline=None, max_examples=80)
@given(BATCHES, st.integers(0, 3), PAGE_SIZES, st.sampled_from([400, 3000, 10**6]))
def test_a_size_holds_the_pass_and_its_padding(
    pieces: list[tuple[int, int]], more_sequences: int, page_size: int, token_pages: int
) -> None:
    """Padded tokens have a sequence of their own, with pages enough; or there is no size."""
    batch, most = prepared(pieces, page_size), len(pieces) + more_sequences
    rule = SizeRule(page_size, most, token_pages)
    tokens = [new for new, _ in pieces]
    seen = sum(Piece(*own).seen_by_long for own in zip(tokens, batch.seq_lens, strict=True))
    width = batch.block_table.shape[1]
    for num_wanted in {len(pieces), sum(tokens)}:
        size = rule.size_of(batch, num_wanted)
        if size is None:
            assert max(tokens) > 1
            large = padded_size(sum(tokens)) * max(width, sum(tokens) / page_size) * 4 > token_pages
            assert sum(tokens) > MOST_TOKENS or seen > MOST_SEEN or large
            continue
        assert size.tokens >= sum(tokens)
        assert size.pages >= width
        assert size.sequences >= len(pieces)
        assert size.most_tokens >= max(tokens)
        assert size.tokens >= size.wanted >= num_wanted
        padding = min(size.most_tokens, size.pages * page_size)
        assert size.tokens - sum(tokens) <= (size.sequences - len(pieces)) * padding
        if max(tokens) == 1:
            assert size.sequences <= most
        else:
            assert sum(tokens) <= MOST_TOKENS
            assert seen <= MOST_SEEN
            assert size.tokens * size.pages <= token_pages
            assert size.wanted > 1  # compilers make another graph of one


def test_numbers_of_sizes_are_few() -> None:
    """All passes of up to 64 sequences and 256 tokens, over short contexts."""
    rule = SizeRule.of(layout_of(16), 1, 64)
    found = set()
    for count in range(1, 65):
        for tokens in range(count, MOST_TOKENS + 1):
            ends = np.array([*range(count), tokens])
            batch: Any = SimpleNamespace(
                sequences=range(count),
                ids=range(tokens),
                cu_seqlens=ends,
                seq_lens=np.diff(ends),
                block_table=np.zeros((count, 3)),
            )
            found |= {rule.size_of(batch, n) for n in (count, tokens)}
    assert None not in found
    assert len(found) < 50


def test_the_memory_of_attention_bounds_a_size() -> None:
    """Half a GiB of partial sums, whatever the heads and the pages."""
    for page_size, heads, value_dim in ((1, 1, 16), (16, 32, 128), (256, 128, 512)):
        layout = layout_of(page_size, value_dim=value_dim)
        rule = SizeRule.of(layout, heads, 64)
        keys = rule.most_token_pages * page_size
        chunk = page_size * min(max(128 // page_size, 1), 32)
        floats = keys / chunk * heads * (value_dim + 2)
        assert 0.9 * 2**29 < 4 * floats <= 2**29
        assert rule.bounds_seen
    assert not SizeRule.of(layout_of(16, latent=True), 16, 64).bounds_seen


@settings(deadline=None, max_examples=80)
@given(
    st.one_of(st.lists(PIECES, min_size=1, max_size=30), BATCHES),
    st.sampled_from(["cpu", "eager", "graphs", "small graphs"]),
)
def test_every_sequence_is_in_one_group(pieces: list[tuple[int, int]], kind: str) -> None:
    """Few replays, or the passes that there would be without graphs."""
    records: Any = [SimpleNamespace(index=7 * at) for at in range(len(pieces))]
    own = {7 * at: Piece(new, new + before) for at, (new, before) in enumerate(pieces)}
    bound = {"graphs": 10**6, "small graphs": 700}.get(kind)
    rule = None if bound is None else SizeRule(16, 64, bound)
    device = "cpu" if kind == "cpu" else "cuda:0"
    groups = list(grouped(records, own, device=device, replayed=rule))
    together = sorted(record.index for group in groups for record in group)
    assert together == [record.index for record in records]
    plain = list(grouped(records, own, device=device, replayed=None))
    assert len(groups) <= len(plain) + 2
    replays = 0
    for group in groups:
        sums = PieceSums()
        for record in group:
            sums = sums.with_piece(own[record.index])
        assert len(group) == 1 or sums.tokens <= 4096
        long = {own[record.index].tokens >= MANY_TOKENS for record in group}
        if device != "cpu" and len(long) == 2:
            assert rule is not None
            assert rule.takes(sums)
            replays += 1
    assert replays <= 2
    if all(new == 1 for new, _ in pieces):
        assert len(groups) == 1


@pytest.mark.parametrize(
    ("pieces", "want"),
    [
        ([(1, 6000)] * 300, [300]),  # decoding
        ([(40, 6000)] * 12, [12]),  # each of them sees nearly as much as a replay may
        ([(100, 100)] * 5, [5]),
        ([(100, 100)] * 4, [2, 2]),
        ([(1, 50)] * 5 + [(500, 500)] + [(1, 50)] * 5, [10, 1]),
        ([(1, 70_000)] * 63 + [(40, 5000)], [63, 1]),  # no size for all of them
        ([(1, 700)] * 63 + [(40, 5000)], [64]),
    ],
)
def test_groups_of_common_batches(pieces: list[tuple[int, int]], want: list[int]) -> None:
    records: Any = [SimpleNamespace(index=at) for at in range(len(pieces))]
    own = {at: Piece(*piece) for at, piece in enumerate(pieces)}
    rule = SizeRule.of(layout_of(16, value_dim=128), 32, 512)
    groups = list(grouped(records, own, device="cuda:0", replayed=rule))
    assert [len(group) for group in groups] == want


@pytest.mark.parametrize(("count", "want"), [(1, 1), (2, 2), (3, 4), (5, 8), (64, 64), (65, 128)])
def test_padded_size(count: int, want: int) -> None:
    assert padded_size(count) == want
    assert padded_size(count, 16) == max(want, 16)
