"""Graph tables on a device: padded passes over fixed addresses give the bits of the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import glimprouter as gr
from device_pairs import DEVICES
from glimprouter import _C
from glimprouter.hf.graphs.sizes import PassSize
from glimprouter.hf.pair.devices import torch_device

pytestmark = [pytest.mark.device, pytest.mark.needs_device]

LAYERS, HEADS, KV_HEADS, SIZE, PAGE_SIZE = 2, 4, 2, 32, 8


class Side:
    """Sequences over a pool, their passes over its tables as usual."""

    def __init__(self, device: str, dtype: str) -> None:
        layout = gr.KvLayout(
            num_layers=LAYERS,
            num_kv_heads=KV_HEADS,
            head_dim=SIZE,
            page_size=PAGE_SIZE,
            dtype=dtype,
        )
        self.home = torch_device(device)
        self.pool = gr.PagePool([layout], 400 * layout.page_bytes, layout.page_bytes, device)
        self.cache = gr.KvCache(self.pool, 10)

    def sinks(self, layer: int) -> torch.Tensor | None:
        """Of every other layer."""
        return torch.linspace(-2, 3, HEADS, device=self.home) if layer % 2 else None

    def attended(self, batch: gr.RaggedBatch, heads: list[list[torch.Tensor]]) -> list[Any]:
        """What every layer gives for the batch's tokens; heads: query, keys, values a layer."""
        outs = []
        for layer, (query, keys, values) in enumerate(heads):
            out = torch.empty_like(query, device=self.home)
            gr.append_kv(self.pool, layer, batch, keys.to(self.home), values.to(self.home))
            options = {"scale": 0.3, "window": 9 * layer, "sinks": self.sinks(layer)}
            gr.paged_attention(self.pool, layer, batch, query.to(self.home), out, **options)
            outs.append(out.cpu())
        return outs


class PaddedSide(Side):
    """The same over graph tables, made once for each size."""

    def __init__(self, device: str, dtype: str) -> None:
        super().__init__(device, dtype)
        self.tables: dict[PassSize, Any] = {}

    def of(self, size: PassSize) -> tuple[Any, torch.Tensor, torch.Tensor]:
        if size not in self.tables:
            words = _C.GraphTables.words(self.pool, 0, *size, HEADS)
            memory = torch.zeros(words, dtype=torch.int64, device=self.home)
            made = _C.GraphTables(self.pool, 0, *size, HEADS, memory)
            scratch = torch.full((made.scratch_size,), torch.nan, device=self.home)
            self.tables[size] = made, memory, scratch
        return self.tables[size]

    def padded(
        self, batch: gr.RaggedBatch, heads: list[list[torch.Tensor]], size: PassSize
    ) -> list[Any]:
        tables, memory, scratch = self.of(size)
        tables.fill(batch, batch.last_rows)
        count, tokens = len(batch.ids), size.tokens
        column = tokens + tokens % 2
        assert memory[:count].tolist() == batch.ids.tolist()
        assert memory[column:][:count].tolist() == batch.positions.tolist()
        assert memory[count:tokens].tolist() == [0] * (tokens - count)
        wanted = memory[3 * column :][: size.wanted].tolist()
        assert wanted == [*batch.last_rows, *[0] * (size.wanted - len(batch.last_rows))]
        outs = []
        for layer, states in enumerate(heads):
            query, keys, values = (_padded(part, tokens).to(self.home) for part in states)
            out = torch.full(query.shape, torch.nan, device=self.home).to(query.dtype)
            tables.attend(
                layer, query, keys, values, out, scratch, 0.3, 9 * layer, 0.0, self.sinks(layer)
            )
            outs.append(out[:count].cpu())
        return outs


def _padded(states: torch.Tensor, tokens: int) -> torch.Tensor:
    """With rows that must not matter, behind the others."""
    return torch.cat([states, states.new_full((tokens - len(states), *states.shape[1:]), 1e4)])


def decode_size(sequences: int, pages: int) -> PassSize:
    return PassSize(sequences, sequences, pages, sequences, 1)


def _states(count: int, generator: torch.Generator, dtype: torch.dtype) -> list[Any]:
    shapes = [(count, heads, SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [[torch.randn(s, generator=generator).to(dtype) for s in shapes] for _ in range(LAYERS)]


def _same_pages(one: Side, other: Side) -> bool:
    for row in one.cache.sequences:
        pages = [side.cache.pages(0, row) for side in (one, other)]
        tokens = one.cache.num_computed_tokens(0, row)
        for layer in range(LAYERS):
            held = []
            for side, own in zip((one, other), pages, strict=True):
                pair = [torch.empty(tokens, KV_HEADS, SIZE, device=side.home) for _ in range(2)]
                gr.gather_kv(side.pool, 0, layer, own, *pair)
                held.append(torch.stack(pair).cpu())
            if not torch.equal(*held):
                return False
    return True


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
def test_padding_changes_no_bit_small_case(device: str, dtype: str) -> None:
    """Batches of one to eight, contexts that grow over the borders, sequences that come and go."""
    plain, padded = Side(device, dtype), PaddedSide(device, dtype)
    generator = torch.Generator().manual_seed(11)
    kind = getattr(torch, dtype)
    lengths = [1, 7, 8, 30, 61, 64, 255, 258]
    rows: list[int] = []
    for turn in range(24):
        if turn % 3 == 0 and lengths:
            prompt = list(range(lengths.pop(0)))
            opened = [side.cache.open([prompt]) for side in (plain, padded)]
            assert opened[0] == opened[1]
            rows.append(opened[0])
            batches = [side.cache.prepare(0, rows[-1:]) for side in (plain, padded)]
            states = _states(len(prompt), generator, kind)
            for side, batch in zip((plain, padded), batches, strict=True):
                side.attended(batch, states)
                side.cache.complete(batch)
        if turn in (10, 17):
            gone = rows.pop(0)
            plain.cache.close(gone)
            padded.cache.close(gone)
        chosen = rows[turn % 2 :] or rows
        for row in chosen:
            for side in (plain, padded):
                side.cache.append(0, row, [turn])
        states = _states(len(chosen), generator, kind)
        one, other = (side.cache.prepare(0, chosen) for side in (plain, padded))
        sequences = 1 << (len(chosen) - 1).bit_length()
        pages = 1 << (one.block_table.shape[1] - 1).bit_length()
        want = plain.attended(one, states)
        size = decode_size(sequences + turn % 2, pages * (1 + turn % 3))
        got = padded.padded(other, states, size)
        for expected, result in zip(want, got, strict=True):
            assert torch.equal(result, expected)
        plain.cache.complete(one)
        padded.cache.complete(other)
        for row in chosen:
            several = [5] * (1 + (turn * row + row) % 5)
            plain.cache.append(0, row, several)
            padded.cache.append(0, row, several)
        one, other = (side.cache.prepare(0, chosen) for side in (plain, padded))
        tokens = len(one.ids)
        states = _states(tokens, generator, kind)
        spare = (0, 1, 7)[turn % 3]  # of padding, which one sequence more has
        width = max(one.block_table.shape[1], 1) + turn % 4
        size = PassSize(tokens + spare, len(chosen) + 1 + turn % 2, width, len(chosen), 8)
        want = plain.attended(one, states)
        for expected, result in zip(want, padded.padded(other, states, size), strict=True):
            assert torch.equal(result, expected)
        plain.cache.complete(one)
        padded.cache.complete(other)
    assert _same_pages(plain, padded)
    padded.cache.check_invariants()


@pytest.mark.parametrize("device", DEVICES)
def test_what_does_not_fit_changes_nothing(device: str) -> None:
    side = PaddedSide(device, "float32")
    tables, memory, scratch = side.of(decode_size(2, 2))
    first = side.cache.open([[1, 2, 3]])
    batch = side.cache.prepare(0, [first])
    with pytest.raises(ValueError, match=r"at most 2 sequences with at most 1 new .*3 tokens"):
        tables.fill(batch, batch.last_rows)
    side.attended(batch, _states(3, torch.Generator(), torch.float32))
    side.cache.complete(batch)
    rows = [first, side.cache.fork(first), side.cache.fork(first)]
    for row in rows:
        side.cache.append(0, row, [4])
    batch = side.cache.prepare(0, rows)
    with pytest.raises(ValueError, match=r"at most 2 sequences.*has 3 sequences"):
        tables.fill(batch, batch.last_rows)
    assert not memory.any()
    states = [torch.zeros(2, heads, SIZE, device=side.home) for heads in (HEADS, 2, 2, HEADS)]
    for changed, message in (
        ({0: states[0][:1]}, "queries"),
        ({1: states[1][:, :1]}, "keys"),
        ({0: states[1], 3: states[1].clone()}, "for 4 query heads, got 2"),
        ({4: scratch[:-1]}, "scratch must be compact"),
        ({4: scratch.to("meta")}, "scratch"),
    ):
        arguments = [changed.get(i, part) for i, part in enumerate([*states, scratch])]
        with pytest.raises((ValueError, TypeError), match=message):
            tables.attend(0, *arguments, 0.5)
    with pytest.raises(ValueError, match="layer"):
        tables.attend(LAYERS, *states, scratch, 0.5)


@pytest.mark.parametrize("device", DEVICES)
def test_sizes_that_make_no_sense(device: str) -> None:
    side = PaddedSide(device, "float32")
    words = _C.GraphTables.words(side.pool, 0, *decode_size(2, 2), HEADS)
    for arguments, message in (
        ((1, *decode_size(2, 2), HEADS), "there is no 1"),
        ((0, 2, 0, 2, 2, 1, HEADS), "in 0 sequences"),
        ((0, 2, 2, 0, 2, 1, HEADS), "of 0 pages"),
        ((0, 0, 2, 2, 2, 1, HEADS), "got 0 tokens"),
        ((0, 2, 2, 2, 0, 1, HEADS), "logits of 0 tokens"),
        ((0, 2, 2, 2, 2, 0, HEADS), "at most 0 a sequence"),
        ((0, *decode_size(2, 2**30), HEADS), "pages"),
        ((0, *decode_size(2, 2), 3), "multiple of the 2 KV heads"),
    ):
        with pytest.raises(ValueError, match=message):
            _C.GraphTables.words(side.pool, *arguments)
    memory = torch.zeros(words, dtype=torch.int64, device=side.home)
    for wrong in (memory[1:], memory.int(), memory[None]):
        with pytest.raises(ValueError, match="memory must be compact"):
            _C.GraphTables(side.pool, 0, *decode_size(2, 2), HEADS, wrong)
