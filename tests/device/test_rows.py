"""Glimpse, sample and router on every device of this build, beside the CPU: the same bits.

On a machine without a GPU, and outside the build with the emulator, the only device is the
CPU itself, where the device functions must refuse.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import device_pairs
import glimprouter as gr
from device_under_test import on_device
from glimprouter import on_device as device_rows
from reference.containers import as_numpy, bits
from reference.rows import hostile_rows, normal_rows, peaked_rows

pytestmark = pytest.mark.device

DEVICES = ["cpu", *device_pairs.DEVICES]
OTHER_DEVICES = [name for name in DEVICES if name != "cpu"]
FIELDS = ("entropy", "logsumexp", "max_prob", "margin", "token", "status", "varentropy", "logprobs")
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
)
_PURPOSE = 1  # of the draws: the large model's
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def rows_of(vocabulary: int) -> NDArray[np.float32]:
    bad = normal_rows(3, vocabulary, 77)
    bad[0, vocabulary // 2], bad[1, 0], bad[2, :] = np.nan, np.inf, -np.inf
    hostile = np.stack(list(hostile_rows(vocabulary, 71).values()))
    return np.concatenate(
        [normal_rows(3, vocabulary, 72), peaked_rows(3, vocabulary, 73), hostile, bad]
    )


def on_host(values: Any) -> NDArray[Any]:
    return as_numpy(values.cpu() if hasattr(values, "cpu") else values)


def glimpse_there(logits: Any, device: str, **options: Any) -> gr.Glimpse:
    """By the public function where the tensor tells its device; emulated memory is the host's."""
    if device.startswith("cuda"):
        return gr.glimpse(logits, **options)
    ids = options.get("logprob_ids")
    arguments = (options.get("entropy_top_k") or 0, options.get("varentropy", False), ids)
    return gr.Glimpse(*device_rows.glimpse_fields(logits, device, *arguments))


def sample_there(logits: Any, device: str, streams: NDArray[Any], **mode: Any) -> Any:
    if device.startswith("cuda"):
        return gr.sample(logits, seed=3, substream=streams, position=11, purpose=_PURPOSE, **mode)
    filters = (
        mode["temperature"],
        mode.get("top_p", 1.0),
        mode.get("top_k", 0),
        mode.get("min_p", 0.0),
    )
    keys = streams.astype(np.uint64), np.array([11], np.uint64)
    return device_rows.sample_tokens(logits, device, filters, 3, *keys, _PURPOSE)


@pytest.mark.parametrize("vocabulary", [1, 302, 2049, 5001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_device_gives_the_bits_of_the_cpu(vocabulary: int, dtype: Any) -> None:
    with np.errstate(over="ignore"):
        rows = rows_of(vocabulary).astype(dtype)
    streams = np.arange(len(rows))
    options = {"varentropy": True, "logprob_ids": [0, vocabulary - 1]}
    want = gr.glimpse(rows, **options)
    top_20 = gr.glimpse(rows, entropy_top_k=20).entropy
    for device in OTHER_DEVICES:
        there = on_device(rows, device)
        got = glimpse_there(there, device, **options)
        for field in FIELDS:
            left, right = on_host(getattr(got, field)), as_numpy(getattr(want, field))
            np.testing.assert_array_equal(bits(np.ascontiguousarray(left)), bits(right), field)
        got_20 = on_host(glimpse_there(there, device, entropy_top_k=20).entropy)
        np.testing.assert_array_equal(bits(np.ascontiguousarray(got_20)), bits(as_numpy(top_20)))
        for mode in SAMPLING:
            tokens = on_host(sample_there(there, device, streams, **mode))
            wanted = gr.sample(
                rows, seed=3, substream=streams, position=11, purpose=_PURPOSE, **mode
            )
            np.testing.assert_array_equal(tokens, wanted)


def test_a_batch_of_no_rows() -> None:
    for device in OTHER_DEVICES:
        empty = on_device(np.empty((0, 50), np.float32), device)
        assert glimpse_there(empty, device).entropy.shape == (0,)


def test_the_cpu_is_no_device_for_device_functions() -> None:
    rows = np.zeros((2, 10), np.float32)
    with pytest.raises(ValueError, match="unknown"):
        device_rows.glimpse_fields(rows, "cpu", 0, False, None)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "cuda:", "cuda:-1", ""])
def test_a_router_on_a_device_that_is_not_there(name: str) -> None:
    boundary = gr.StepBoundary([b"a", b"\n\n"], ["\n\n"], [], [], [], [])
    with pytest.raises((ValueError, RuntimeError), match="device"):
        gr.StepRouter(boundary, device=name)


def test_launch_needs_a_router_on_a_device() -> None:
    boundary = gr.StepBoundary([b"a", b"\n\n"], ["\n\n"], [], [], [], [])
    router = gr.StepRouter(boundary)
    row = router.open()
    out = router.outputs(1)
    with pytest.raises(RuntimeError, match="on a device"):
        router.launch("small", np.zeros((1, 2), np.float32), [row], out)
    router.wait(out)  # a step on the CPU is finished when it returns
    assert router.device == "cpu"


@pytest.mark.parametrize("wrong", [10, -1])
@pytest.mark.parametrize("device", DEVICES)
def test_ids_outside_the_vocabulary(device: str, wrong: int) -> None:
    logits = on_device(np.zeros((1, 10), np.float32), device)
    call = gr.glimpse if device == "cpu" else partial(glimpse_there, device=device)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        call(logits, logprob_ids=[wrong])
