"""`torch.ops.glimprouter`: fakes, schemas, and the bits of the functions that they stand for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import glimprouter as gr
from glimprouter.torch import PassTables, arena_of

OPS = torch.ops.glimprouter
LAYERS, KV_HEADS, HEADS, SIZE, PAGE = 2, 2, 6, 32, 16
SINKS = torch.tensor([0.5, -1.0, 3.0, 0.0, 2.0, -4.0])
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Pass:
    """A forward pass of three sequences, one of them behind a page that it shares."""

    def __init__(self, dtype: str = "float32", seed: int = 0) -> None:
        self.layout = gr.KvLayout(
            num_layers=LAYERS,
            num_kv_heads=KV_HEADS,
            head_dim=SIZE,
            page_size=PAGE,
            dtype=dtype,  # type: ignore[arg-type]
        )
        self.pool = gr.PagePool([self.layout], 40 * self.layout.page_bytes)
        self.pool.memory[:] = 0
        cache = gr.KvCache(self.pool, 4)
        rows = [cache.open([[0] * length]) for length in (21, 3)]
        first = cache.prepare(0, rows)
        self.dtype = DTYPES[dtype]
        self.generator = torch.Generator().manual_seed(seed)
        for layer in range(LAYERS):
            gr.append_kv(self.pool, layer, first, *self.states(24, KV_HEADS, 2))
        cache.complete(first)
        rows.append(cache.fork(rows[0]))
        for row, count in zip(rows, (1, 14, 5), strict=True):
            cache.append(0, row, [0] * count)
        self.batch = cache.prepare(0, rows)
        self.tables = PassTables.of(self.pool, self.batch, arena_of(self.pool, self.dtype))
        self.query, *_ = self.states(20, HEADS, 1)
        self.keys, self.values = self.states(20, KV_HEADS, 2)

    def states(self, tokens: int, heads: int, count: int) -> list[torch.Tensor]:
        """``[1, heads, tokens, size]`` as attention functions get them: transposed."""
        shape = (1, tokens, heads, SIZE)
        return [
            torch.randn(shape, generator=self.generator).to(self.dtype).transpose(1, 2)
            for _ in range(count)
        ]

    def native(self, *options: Any) -> torch.Tensor:
        out = torch.empty((1, 20, HEADS, SIZE), dtype=self.dtype)
        gr.append_kv(self.pool, 1, self.batch, self.keys, self.values)
        named = dict(zip(("window", "softcap", "sinks"), options, strict=False))
        gr.paged_attention(self.pool, 1, self.batch, self.query, out, scale=0.2, **named)
        return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [(0, 0.0), (7, 0.0), (0, 3.0), (7, 0.0, SINKS)], ids=str)
def test_the_bits_of_the_native_functions(dtype: str, options: tuple[Any, ...]) -> None:
    """Together, one after the other, and on tables of tensors: one result, one arena."""
    want, fused, apart = (Pass(dtype) for _ in range(3))
    expected = want.native(*options)
    got = OPS.attend(fused.query, fused.keys, fused.values, *fused.tables, 1, 0.2, *options)
    OPS.append_kv(*apart.tables, 1, apart.keys, apart.values)
    tables = apart.tables
    read = OPS.paged_attention(apart.query, *tables, 1, 0.2, *options)
    for out, other in ((got, fused), (read, apart)):
        assert torch.equal(out, expected)
        np.testing.assert_array_equal(other.pool.memory, want.pool.memory)


def test_three_dimensions_are_the_same() -> None:
    one, other = Pass(), Pass()
    flat = [x[0].transpose(0, 1) for x in (other.query, other.keys, other.values)]
    want = OPS.attend(one.query, one.keys, one.values, *one.tables, 0, 0.2)
    assert torch.equal(OPS.attend(*flat, *other.tables, 0, 0.2), want[0])


def test_arena_is_the_pool_itself() -> None:
    made = Pass()
    arena = arena_of(made.pool, torch.float32)
    assert arena.data_ptr() == made.pool.memory.ctypes.data
    assert arena.numel() * 4 == made.pool.memory.size
    with torch.inference_mode():
        assert not arena_of(made.pool, torch.float32).is_inference()
    arena[5] = 2.5
    assert made.pool.memory[20:24].view(np.float32) == 2.5


def test_opcheck() -> None:
    made = Pass()
    attention = (*made.tables, 1, 0.2, 7, 3.0, SINKS)
    samples: dict[Any, tuple[Any, ...]] = {
        OPS.attend: (made.query, made.keys, made.values, *attention),
        OPS.append_kv: (*made.tables, 0, made.keys, made.values),
        OPS.paged_attention: (made.query, *made.tables, 1, 0.2),
        OPS.glimpse: (torch.randn(3, 500), 20),
        OPS.sample: (
            torch.randn(3, 500).half(),
            torch.tensor([1, 2, 3]),
            torch.tensor(9),
            5,
            0.6,
            0.95,
            20,
            0.1,
            1,
        ),
    }
    for operation, arguments in samples.items():
        torch.library.opcheck(operation.default, arguments)


def test_glimpse_and_sample_in_a_graph() -> None:
    """Any number of rows and any position: one graph (and one for a single row)."""
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, dynamic=True, backend=count)
    def decode(logits: torch.Tensor, position: torch.Tensor) -> Any:
        scaled = logits * 2.0
        stream = torch.arange(logits.shape[0])
        return OPS.glimpse(scaled), OPS.sample(scaled, stream, position, 3, 0.7, 0.9, purpose=1)

    generator = torch.Generator().manual_seed(0)
    for rows in (5, 2, 9, 3):
        logits = torch.randn((rows, 700), generator=generator)
        statistics, tokens = decode(logits, torch.tensor(rows))
        for got, want in zip(statistics, gr.glimpse(logits * 2.0), strict=False):
            assert torch.equal(got, want)
        wanted = gr.sample(
            logits * 2.0,
            temperature=0.7,
            top_p=0.9,
            seed=3,
            substream=range(rows),
            position=rows,
            purpose=1,
        )
        assert torch.equal(tokens, wanted)
    assert len(graphs) == 1


def changed(tables: PassTables, **columns: torch.Tensor) -> PassTables:
    return tables._replace(**columns)


def test_tables_that_reach_elsewhere_are_refused() -> None:
    """Each with a message that names the column, and before anything is written."""
    made = Pass()
    tables = made.tables
    beyond = made.pool.memory.size // 256

    def edited(name: str, index: Any, value: int) -> PassTables:
        column = getattr(tables, name).clone()
        column[index] = value
        return changed(tables, **{name: column})

    bad: list[tuple[PassTables, str]] = [
        (edited("slot_mapping", 3, -1), "slot_mapping names page"),
        (edited("slot_mapping", 3, beyond * PAGE), "slot_mapping names page"),
        (edited("block_table", (0, 0), -1), "block_table names page"),
        (edited("block_table", (1, 1), beyond), "block_table names page"),
        (edited("seq_lens", 0, 0), "seq_lens holds 0"),
        (edited("seq_lens", 1, 10_000), "seq_lens holds 10000"),
        (edited("cu_seqlens", 1, 19), "must not fall"),
        (edited("cu_seqlens", 0, 1), "must begin with 0"),
        (edited("cu_seqlens", -1, 19), "end with the number of slot_mapping"),
        (
            changed(tables, slot_mapping=tables.slot_mapping.int()),
            "slot_mapping must be a contiguous int64",
        ),
        (
            changed(tables, slot_mapping=tables.slot_mapping[:-1]),
            "end with the number of slot_mapping, 19",
        ),
        (changed(tables, block_table=tables.block_table[:-1]), "one row of block_table each"),
        (changed(tables, block_table=tables.block_table[:, ::2]), "must be a contiguous int32"),
        (changed(tables, cu_seqlens=tables.cu_seqlens[:-1]), "cu_seqlens of one number more"),
        (changed(tables, arena=tables.arena[::2]), "arena must be contiguous"),
        (changed(tables, arena=tables.arena.double()), "arena must be float32"),
    ]
    before = made.pool.memory.copy()
    for table, message in bad:
        with pytest.raises((ValueError, TypeError), match=message):
            OPS.attend(made.query, made.keys, made.values, *table, 1, 0.2)
    with pytest.raises(ValueError, match="multiple of the 2 KV heads"):
        OPS.attend(made.query[:, :3], made.keys, made.values, *tables, 1, 0.2)
    with pytest.raises(ValueError, match="layer must lie in"):
        OPS.attend(made.query, made.keys, made.values, *tables, 2, 0.2)
    with pytest.raises(ValueError, match="values must have the shape"):
        OPS.append_kv(*tables, 1, made.keys, made.values[:, :, 1:])
    np.testing.assert_array_equal(made.pool.memory, before)


def test_an_empty_sequence_needs_no_pages() -> None:
    """The sequence of the padding: its row of the table and its length are not looked at."""
    made, other = Pass(), Pass()
    column = other.tables.seq_lens.clone()
    column[-1] = -5
    table = other.tables.block_table.clone()
    table[-1] = 2**30
    tables = changed(other.tables, seq_lens=column, block_table=table)
    got = OPS.attend(other.query, other.keys, other.values, *tables, 1, 0.2)
    assert torch.equal(got, made.native())


def test_import_without_torch() -> None:
    program = "import sys, glimprouter; assert 'torch' not in sys.modules; print('ok')"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert finished.stdout.strip() == "ok", finished.stderr
