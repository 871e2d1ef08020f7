"""Sizes of captured passes hold what they are taken for, and groups keep to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glimprouter as gr
from glimprouter.hf.attention.gathered import MANY_TOKENS
from glimprouter.hf.engine.pass_groups import Piece, grouped
from glimprouter.hf.graphs import sizes
from glimprouter.hf.graphs.sizes import MOST_SEEN, MOST_TOKENS, seen_by_long, size_of

PAGE_SIZE = 16
# New tokens of a sequence and how many it had before.
PIECES = st.tuples(
    st.one_of(st.integers(1, 9), st.integers(1, 300)),
    st.one_of(st.integers(0, 64), st.integers(0, 4000)),
)


def prepared(pieces: list[tuple[int, int]]) -> gr.RaggedBatch:
    """A pass of a real cache over such sequences."""
    layout = gr.KvLayout(
        num_layers=1, num_kv_heads=1, head_dim=16, page_size=PAGE_SIZE, dtype="bfloat16"
    )
    pages = sum(-(-(new + before) // PAGE_SIZE) for new, before in pieces)
    pool = gr.PagePool([layout], (pages + 1) * layout.page_bytes, layout.page_bytes)
    cache = gr.KvCache(pool, len(pieces))
    rows = []
    for new, before in pieces:
        rows.append(cache.open([[3] * (before or new)]))
        if before:
            cache.complete(cache.prepare(0, rows[-1:]))
            cache.append(0, rows[-1], [4] * new)
    return cache.prepare(0, rows)


@settings(deadline=None, max_examples=60)
@given(st.lists(PIECES, min_size=1, max_size=12), st.integers(0, 3))
def test_a_size_holds_the_pass_and_its_padding(
    pieces: list[tuple[int, int]], more_sequences: int
) -> None:
    """Padded tokens have a sequence of their own, with pages enough; or there is no size."""
    batch, most = prepared(pieces), len(pieces) + more_sequences
    tokens = [new for new, _ in pieces]
    for num_wanted in {len(pieces), sum(tokens)}:
        size = size_of(batch, num_wanted, PAGE_SIZE, most)
        if size is None:
            assert max(tokens) > 1
            lengths = batch.seq_lens.tolist()
            seen = sum(map(seen_by_long, tokens, lengths))
            long = batch.block_table.shape[1] > 512  # of many tokens over long contexts
            assert sum(tokens) > MOST_TOKENS or seen > MOST_SEEN or long
            continue
        assert size.tokens >= sum(tokens)
        assert size.pages >= batch.block_table.shape[1]
        assert size.sequences >= len(pieces)
        assert size.most_tokens >= max(tokens)
        assert size.tokens >= size.wanted >= num_wanted
        padding = min(size.most_tokens, size.pages * PAGE_SIZE)
        assert size.tokens - sum(tokens) <= (size.sequences - len(pieces)) * padding
        if size.most_tokens > 1:
            assert size.tokens <= MOST_TOKENS
            assert size.wanted > 1  # compilers make another graph of one
        else:
            assert size.sequences <= most


def test_numbers_of_sizes_are_few() -> None:
    """All passes of up to 64 sequences and 256 tokens, over short contexts."""
    found = set()
    for count in range(1, 65):
        for tokens in range(count, MOST_TOKENS + 1):
            counts = [1] * (count - 1) + [tokens - count + 1]
            if counts[-1] < MANY_TOKENS:
                batch: Any = SimpleNamespace(
                    sequences=range(count),
                    ids=range(tokens),
                    cu_seqlens=[*range(count), tokens],
                    seq_lens=SimpleNamespace(tolist=lambda own=counts: own),
                    block_table=SimpleNamespace(shape=(count, 3)),
                )
                found |= {size_of(batch, n, PAGE_SIZE, 64) for n in (count, tokens)}
    assert None not in found
    assert len(found) < 40


@settings(deadline=None, max_examples=60)
@given(st.lists(PIECES, min_size=1, max_size=30), st.booleans(), st.sampled_from(["cpu", "cuda:0"]))
def test_every_sequence_is_in_one_group(
    pieces: list[tuple[int, int]], replays: bool, device: str
) -> None:
    records: Any = [SimpleNamespace(index=7 * at) for at in range(len(pieces))]
    own = {7 * at: Piece(new, new + before) for at, (new, before) in enumerate(pieces)}
    groups = list(grouped(records, own, device=device, replays=replays and device != "cpu"))
    together = sorted(record.index for group in groups for record in group)
    assert together == [record.index for record in records]
    for group in groups:
        of_group = [own[record.index] for record in group]
        tokens = sum(piece.tokens for piece in of_group)
        assert len(group) == 1 or tokens <= 4096
        if device == "cpu":
            continue
        seen = sum(seen_by_long(*piece) for piece in of_group)
        fits = tokens <= MOST_TOKENS and seen <= MOST_SEEN
        long = {piece.tokens >= MANY_TOKENS for piece in of_group}
        assert (replays and fits) or len(long) == 1


@pytest.mark.parametrize(("count", "want"), [(1, 1), (2, 2), (3, 4), (5, 8), (64, 64), (65, 128)])
def test_padded_size(count: int, want: int) -> None:
    assert sizes.padded_size(count) == want
    assert sizes.padded_size(count, 16) == max(want, 16)
