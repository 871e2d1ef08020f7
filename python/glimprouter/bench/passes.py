"""A decode pass of the demo pair as one native call, and its matrix products, beside torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import glimprouter as gr
from glimprouter import _C
from glimprouter.bench.harness import BenchmarkRow, Section, Settings, measure, one_torch_thread

# Columns and rows of weight matrices: of the demo pair, of a model of 0.6 billion parameters.
MATRICES = ((64, 128), (192, 448), (1024, 3072), (1024, 151_936))
ROWS = (1, 4, 16, 64)
CONTEXT = 128  # tokens of each sequence
NATIVE, FUSED, OWN = "one native call", "fused norms and embeddings", "the model's own code"
PRODUCT, LINEAR, READ = "product", "torch.nn.functional.linear", "torch.sum of the weights"


def _product(size: int, outputs: int, rows: int) -> dict[str, Callable[[], object]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, size, generator=generator)
    x = torch.randn(rows, size, generator=generator)
    out = torch.empty(rows, outputs)
    return {
        PRODUCT: lambda: _C.multiply_rows(x, weight, None, out),
        LINEAR: lambda: torch.nn.functional.linear(x, weight),
        READ: weight.sum,
    }


def _products(settings: Settings) -> Section:
    table = []
    for size, outputs in MATRICES:
        for rows in [rows for rows in ROWS if rows <= settings.batch]:
            timings = measure(_product(size, outputs, rows), settings)
            time = timings.microseconds(PRODUCT)
            table.append(
                BenchmarkRow(
                    f"{outputs} x {size}, {rows} rows:"
                    f" {2e-3 * rows * size * outputs / time:.0f} GFLOP/s",
                    time,
                    gigabytes_per_second=4e-3 * size * outputs / time,
                    times_floor=timings.ratio(PRODUCT, READ),
                    speedup=timings.ratio(LINEAR, PRODUCT),
                )
            )
    return Section(f"matrix products, float32, one thread; over {LINEAR}", table)


def _pass(model: Any, rows: int) -> dict[str, Callable[[], object]]:
    """One token more of so many sequences, computed anew at each call."""
    from glimprouter.hf.attention.fused_layers import FusedLayers
    from glimprouter.hf.attention.layers import kv_layout
    from glimprouter.hf.attention.paged import paged_forward
    from glimprouter.hf.decoder.host_pass import find_host_pass

    layout = kv_layout(model)
    pool = gr.PagePool([layout], (2 * rows + 2) * layout.page_bytes, layout.page_bytes)
    cache = gr.KvCache(pool, rows)
    sequences = [cache.open([list(range(1, CONTEXT + 1))]) for _ in range(rows)]
    batch = cache.prepare(0, sequences)
    paged_forward(model, pool, batch)
    cache.complete(batch)
    for sequence in sequences:
        cache.append(0, sequence, [5])
    batch = cache.prepare(0, sequences)
    native, fused = find_host_pass(model), FusedLayers(model)
    assert native is not None
    return {
        NATIVE: lambda: native(pool, batch),
        FUSED: lambda: paged_forward(model, pool, batch, fused),
        OWN: lambda: paged_forward(model, pool, batch),
    }


def _passes(settings: Settings) -> Section:
    from glimprouter.bench.batch import load_pair

    pair, table = load_pair(), []
    for name, model in (("small", pair.small), ("large", pair.large)):
        read = sum(weight.nbytes for weight in model.parameters())
        for rows in [rows for rows in ROWS if rows <= settings.batch]:
            contenders = _pass(model, rows)
            timings = measure(contenders, settings)
            for contender in contenders:
                time = timings.microseconds(contender)
                table.append(
                    BenchmarkRow(
                        f"{name} model, {rows} rows: {contender}",
                        time,
                        gigabytes_per_second=1e-3 * read / time,
                        speedup=timings.ratio(OWN, contender),
                    )
                )
    title = f"a decode pass on pages, context {CONTEXT}, float32, one thread; over {OWN}"
    return Section(title, table)


def run(settings: Settings) -> list[Section]:
    """Measures products and passes, on one thread."""
    import torch

    with one_torch_thread(), torch.inference_mode():
        return [_products(settings), _passes(settings)]
