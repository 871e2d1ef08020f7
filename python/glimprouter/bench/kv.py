"""Keys and values in pages: append, gather and save against memcpy; catching up by k tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import glimprouter as gr
from glimprouter.bench.harness import BenchmarkRow, Section, Settings, measure, one_torch_thread

LEAST_SHARE_OF_MEMCPY = 0.8
CONTEXT = 2048
CATCH_UP = (8, 64, 512)


def _transfers(settings: Settings) -> list[BenchmarkRow]:
    import torch

    from glimprouter.hf.attention.layers import PAGE_SIZE

    layout = gr.KvLayout(
        num_layers=1, num_kv_heads=8, head_dim=128, page_size=PAGE_SIZE, dtype="bfloat16"
    )
    pool = gr.PagePool([layout], (CONTEXT // PAGE_SIZE + 4) * layout.page_bytes)
    cache = gr.KvCache(pool, 1)
    cache.open([[0] * CONTEXT])
    batch = cache.prepare(0, [0])
    cache.complete(batch)
    keys, values = torch.randn(2, 1, 8, CONTEXT, 128).to(torch.bfloat16)
    wide_keys, wide_values = keys.float(), values.float()
    gathered, wide = ((torch.empty_like(k), torch.empty_like(k)) for k in (keys, wide_keys))
    pages = cache.pages(0, 0)
    payload = 2 * keys.numel() * 2
    source, target = np.ones(payload, np.uint8), np.zeros(payload, np.uint8)
    wide_payload = payload * 3 // 2  # a cast reads one type and writes another: the mean
    wide_source, wide_target = np.ones(wide_payload, np.uint8), np.zeros(wide_payload, np.uint8)
    timings = measure(
        {
            "memcpy": lambda: np.copyto(target, source),
            "append": lambda: gr.append_kv(pool, 0, batch, keys, values),
            "gather": lambda: gr.gather_kv(pool, 0, 0, pages, *gathered),
            "memcpy of a cast's bytes": lambda: np.copyto(wide_target, wide_source),
            "append of float32": lambda: gr.append_kv(pool, 0, batch, wide_keys, wide_values),
            "gather as float32": lambda: gr.gather_kv(pool, 0, 0, pages, *wide),
        },
        settings,
    )
    rows = [BenchmarkRow("memcpy of the same bytes", timings.microseconds("memcpy"))]
    for name, copy, moved in (
        ("append", "memcpy", payload),
        ("gather", "memcpy", payload),
        ("append of float32", "memcpy of a cast's bytes", wide_payload),
        ("gather as float32", "memcpy of a cast's bytes", wide_payload),
    ):
        microseconds = timings.microseconds(name)
        share = timings.ratio(copy, name)
        rows.append(
            BenchmarkRow(
                f"{name}, {moved / 1e6:.1f} MB",
                microseconds,
                gigabytes_per_second=moved / microseconds / 1e3,
                speedup=share,
                goal=f"share of memcpy >= {LEAST_SHARE_OF_MEMCPY:g}",
                met=share >= LEAST_SHARE_OF_MEMCPY,
            )
        )
    return rows


def _gathered_bytes(call: Callable[[], object], tokens: int, head_dim: int) -> int:
    """Bytes of the new tensors with keys or values of so many tokens, ``[..., tokens, head size]``.

    Counted at every operation of torch; pages that our attention reads are not in any tensor.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    total = 0

    class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal total
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-2:] == (tokens, head_dim):
                before = {a.untyped_storage().data_ptr() for a in _tensors(args)}
                if out.untyped_storage().data_ptr() not in before:
                    total += out.numel() * out.element_size()
            return out

    with Counter():  # type: ignore[no-untyped-call]
        call()
    return total


def _tensors(arguments: Any) -> list[Any]:
    """The tensors among the arguments of an operation, those in lists too."""
    import torch

    if isinstance(arguments, torch.Tensor):
        return [arguments]
    if isinstance(arguments, tuple | list):
        return [tensor for argument in arguments for tensor in _tensors(argument)]
    return []


def _catch_up(settings: Settings) -> list[BenchmarkRow]:
    """A model that is k tokens behind at a context of 2048.

    On pages, in the gathering engine, and by DynamicCache.
    """
    import torch
    from transformers import DynamicCache

    from glimprouter.bench.decode import thin_model
    from glimprouter.hf.attention.layers import kv_layout
    from glimprouter.hf.attention.paged import paged_forward
    from glimprouter.hf.engine.gather_runner import ModelRunner

    model: Any = thin_model()
    layout = kv_layout(model)
    pool = gr.PagePool([layout], (2 * CONTEXT // layout.page_size) * layout.page_bytes)
    cache = gr.KvCache(pool, 1)
    ids = (torch.arange(CONTEXT + 1024) % 200 + 40).tolist()
    cache.open([ids[:CONTEXT]])
    batch = cache.prepare(0, [0])
    paged_forward(model, pool, batch)
    cache.complete(batch)
    dynamic = DynamicCache(config=model.config)
    model(torch.tensor([ids[:CONTEXT]]), past_key_values=dynamic)
    runner = ModelRunner("small", model, 1)
    runner.forward([0], [ids[:CONTEXT]])
    rows = []
    for k in CATCH_UP:
        unseen = ids[CONTEXT : CONTEXT + k]

        def paged(unseen: list[int] = unseen) -> None:
            cache.append(0, 0, unseen)
            batch = cache.prepare(0, [0])
            assert len(batch.ids) == len(unseen), "computed exactly what was not seen"
            paged_forward(model, pool, batch)
            cache.complete(batch)
            cache.truncate(0, 0)

        def copied(unseen: list[int] = unseen) -> None:
            model(torch.tensor([unseen]), past_key_values=dynamic, logits_to_keep=1)
            dynamic.crop(-len(unseen))

        def in_slots(unseen: list[int] = unseen) -> None:
            runner.forward([0], [unseen])
            runner.cache.truncate(0, CONTEXT)

        contenders: dict[str, Callable[[], object]] = {
            "pages": paged,
            "gathering engine": in_slots,
            "DynamicCache": copied,
        }
        timings = measure(contenders, settings)
        for name in contenders:
            rows.append(
                BenchmarkRow(
                    f"k = {k}: {name}",
                    timings.microseconds(name),
                    speedup=None if name == "DynamicCache" else timings.ratio("DynamicCache", name),
                    gathered_bytes=_gathered_bytes(
                        contenders[name], CONTEXT + k, layout.layers[0].head_dim
                    ),
                )
            )
    return rows


def run(settings: Settings) -> list[Section]:
    """Measures transfers of one layer, and catching up of 28 thin layers, on one thread."""
    import torch

    with one_torch_thread(), torch.inference_mode():
        return [
            Section("keys and values of 2048 tokens, bfloat16, one layer", _transfers(settings)),
            Section(
                f"k unseen tokens at a context of {CONTEXT}, 28 thin layers", _catch_up(settings)
            ),
        ]
