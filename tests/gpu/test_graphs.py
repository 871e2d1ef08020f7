"""What only a GPU can show: graphs, streams, and the bits of the full vocabulary.

Run by benchmarks/gpu_suite.sh; collected only where there is a device "cuda:0".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import glimprouter as gr
from reference.rows import hostile_rows, normal_rows, peaked_rows
from reference.statistics import row_statistics

pytestmark = pytest.mark.gpu

CUDA = "cuda:0"
SIZE = 2100
MODES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.0},
    {"temperature": 0.9, "top_k": 50, "min_p": 0.01},
)


def boundary_of(vocabulary: int) -> gr.StepBoundary:
    words: list[bytes | None] = [b"w%d" % index for index in range(vocabulary)]
    words[3], words[4] = b".\n\n", b"\n\n"
    return gr.StepBoundary(words, ["\n\n"], [], [], [], [])


def two_routers(count: int, vocabulary: int = SIZE, **options: Any) -> tuple[Any, Any]:
    """The same sequences on the CPU and on the GPU."""
    routers = []
    for device in ("cpu", CUDA):
        config = gr.RouterConfig(repetition_guard=False, **options)
        router = gr.StepRouter(boundary_of(vocabulary), config, max_sequences=count, device=device)
        for index in range(count):
            router.open(seed=5, substream=index)
        routers.append(router)
    return routers[0], routers[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [302, 32_000, 151_936, 262_144])
@pytest.mark.parametrize("batch", [1, 3, 99])
def test_statistics_and_tokens_are_the_bits_of_the_cpu(
    batch: int, vocabulary: int, dtype: torch.dtype
) -> None:
    rows = np.concatenate([normal_rows(batch, vocabulary, 1), peaked_rows(batch, vocabulary, 2)])
    rows = rows[:batch] if batch % 2 else rows[batch:]
    host = torch.from_numpy(rows).to(dtype)
    there = host.to(CUDA)
    want, got = gr.glimpse(host, varentropy=True), gr.glimpse(there, varentropy=True)
    for field in ("entropy", "logsumexp", "max_prob", "margin", "token", "status", "varentropy"):
        assert torch.equal(getattr(got, field).cpu(), getattr(want, field)), field
    for mode in MODES:
        streams = list(range(batch))
        tokens = gr.sample(there, seed=9, substream=streams, position=4, **mode)
        assert torch.equal(
            tokens.cpu(), gr.sample(host, seed=9, substream=streams, position=4, **mode)
        )
    exact = np.array([row_statistics(row).entropy for row in host.double().numpy()])
    bound = 2e-6 * np.maximum(1.0, exact)
    assert np.all(np.abs(got.entropy.cpu().double().numpy() - exact) <= bound)


def test_hostile_rows_small_case() -> None:
    rows = torch.from_numpy(np.stack(list(hostile_rows(SIZE, 3).values())))
    want, got = gr.glimpse(rows), gr.glimpse(rows.to(CUDA))
    assert torch.equal(got.entropy.cpu(), want.entropy)
    assert torch.equal(got.token.cpu(), want.token)


def captured(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        step()
    return graph


@pytest.mark.parametrize("mode", MODES)
def test_a_replayed_step_goes_on_and_draws_anew(mode: dict[str, Any]) -> None:
    cpu, gpu = two_routers(4, route="small", **mode)
    logits = torch.from_numpy(normal_rows(4, SIZE, 8)).to(CUDA)
    rows = torch.tensor([2, 0, 3, 1], dtype=torch.int32, device=CUDA)
    out, expected = gpu.outputs(4), cpu.outputs(4)
    graph = captured(lambda: gpu.launch("small", logits, rows, out))
    seen = []
    for turn in range(12):
        logits.copy_(torch.from_numpy(normal_rows(4, SIZE, turn)))
        graph.replay()
        gpu.wait(out)
        cpu.step("small", logits.cpu(), [2, 0, 3, 1], expected)
        np.testing.assert_array_equal(out.token, expected.token)
        np.testing.assert_array_equal(out.entropy, expected.entropy)
        seen.append(out.token.copy())
    for row in range(4):
        assert gpu.save(row) == cpu.save(row)


def test_the_rows_of_a_graph_are_read_at_every_replay() -> None:
    cpu, gpu = two_routers(4, route="small", temperature=0.0)
    logits = torch.from_numpy(normal_rows(2, SIZE, 8)).to(CUDA)
    rows = torch.tensor([0, 1], dtype=torch.int32, device=CUDA)
    out = gpu.outputs(2)
    graph = captured(lambda: gpu.launch("small", logits, rows, out))
    graph.replay()
    rows.copy_(torch.tensor([3, 2]))
    graph.replay()
    gpu.wait(out)
    for pair in ([0, 1], [3, 2]):
        cpu.step("small", logits.cpu(), pair, cpu.outputs(2))
    for row in range(4):
        assert gpu.save(row) == cpu.save(row)


def test_two_streams_do_not_disturb_each_other() -> None:
    batches = [torch.from_numpy(normal_rows(8, 60_000, seed)).to(CUDA) for seed in range(2)]
    want = [gr.glimpse(batch.cpu()).entropy for batch in batches]
    streams = [torch.cuda.Stream() for _ in batches]
    torch.cuda.synchronize()
    for _ in range(50):
        got = []
        for stream, batch in zip(streams, batches, strict=True):
            with torch.cuda.stream(stream):
                got.append(gr.glimpse(batch).entropy)
        torch.cuda.synchronize()
        for left, right in zip(got, want, strict=True):
            assert torch.equal(left.cpu(), right)


def test_a_router_that_changes_its_stream_small_case() -> None:
    cpu, gpu = two_routers(3, route="small", temperature=0.7)
    out, expected = gpu.outputs(3), cpu.outputs(3)
    streams = [torch.cuda.Stream() for _ in range(2)]
    for turn in range(10):
        rows = torch.from_numpy(normal_rows(3, SIZE, turn))
        there = rows.to(CUDA)
        torch.cuda.synchronize()
        with torch.cuda.stream(streams[turn % 2]):
            gpu.launch("small", there, [0, 1, 2], out)
        cpu.step("small", rows, [0, 1, 2], expected)
    gpu.wait(out)
    np.testing.assert_array_equal(out.token, expected.token)
    for row in range(3):
        assert gpu.save(row) == cpu.save(row)


def test_logits_on_the_wrong_device_change_nothing() -> None:
    cpu, gpu = two_routers(1, route="small")
    before = gpu.save(0)
    logits = torch.zeros((1, SIZE))
    with pytest.raises(ValueError, match="the CPU, but are wanted on cuda:0"):
        gpu.step("small", logits, [0], gpu.outputs(1))
    with pytest.raises(ValueError, match="on cuda:0, but are wanted on the CPU"):
        cpu.step("small", logits.to(CUDA), [0], cpu.outputs(1))
    assert gpu.save(0) == before


def test_outputs_without_memory_cannot_be_captured() -> None:
    cpu, gpu = two_routers(1, route="small")
    logits = torch.zeros((1, SIZE), device=CUDA)
    foreign = cpu.outputs(1)
    with pytest.raises(RuntimeError, match="while a graph is captured"):
        captured(lambda: gpu.launch("small", logits, [0], foreign))
    torch.cuda.synchronize()
    gpu.step("small", logits, [0], gpu.outputs(1))  # the router goes on
