"""Decode layers on a device: norms, rotations, activations, products of a few rows; and torch.

Weights are cycled through more memory than the second-level cache holds, as a model's are. Where
there is no device only torch is measured: a smoke test of the script.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from clock import Clock
from models import SHAPES
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from glimprouter.hf.attention.fused_operations import DeviceOperations, Norm, NormForm
from glimprouter.hf.attention.fused_products import MOST_ROWS

ROWS = (1, 4, 8, 16)
COLD_BYTES = 400 << 20  # that weights are cycled through
FORM = NormForm(0.0, True)
EPSILON = 1e-6

Pair = tuple[Callable[[], object] | None, Callable[[], object]]


class Shapes:
    """What one layer of a model computes for some rows, in bfloat16, by us and by torch."""

    def __init__(self, clock: Clock, name: str, rows: int) -> None:
        """Random rows.

        Args:
            clock: Of the device.
            name: Key of `models.SHAPES`.
            rows: M.
        """
        self.clock, self.rows = clock, rows
        own = SHAPES[name]
        self.hidden, self.inner = own["hidden_size"], own["intermediate_size"]
        self.heads, self.kv_heads = own["num_attention_heads"], own["num_key_value_heads"]
        self.size, self.vocabulary = own["head_dim"], own["vocab_size"]
        self.operations = DeviceOperations(str(clock.device)) if clock.is_cuda else None

    def random(self, *shape: int) -> torch.Tensor:
        """Normal numbers on the device."""
        return torch.randn(shape, device=self.clock.device, dtype=torch.bfloat16)

    def norm(self) -> Pair:
        """One norm of the hidden states."""
        hidden = self.random(1, self.rows, self.hidden)
        own = Qwen3RMSNorm(self.hidden, EPSILON).to(hidden)
        ops = self.operations
        ours = None if ops is None else lambda: ops.norm(hidden, own.weight, EPSILON, FORM)
        return ours, lambda: own(hidden)

    def rotation(self) -> Pair:
        """Norms of queries and keys, and their rotation."""
        shapes = [(1, self.rows, heads, self.size) for heads in (self.heads, self.kv_heads)]
        queries, keys = (self.random(*shape) for shape in shapes)
        cosine, sine = self.random(2, 1, self.rows, self.size)
        norms = [Qwen3RMSNorm(self.size, EPSILON).to(queries) for _ in range(2)]
        present = tuple(Norm(norm.weight, EPSILON, FORM) for norm in norms)
        ops = self.operations

        def ours() -> object:
            assert ops is not None
            turned = queries.transpose(1, 2), keys.transpose(1, 2)
            return ops.rotate(*turned, cosine, sine, present)  # type: ignore[arg-type]

        def theirs() -> object:
            turned = norms[0](queries).transpose(1, 2), norms[1](keys).transpose(1, 2)
            return apply_rotary_pos_emb(*turned, cosine, sine)

        return (None if ops is None else ours), theirs

    def activation(self) -> Pair:
        """SiLU of a gate times what it lets through."""
        gate, up = self.random(2, 1, self.rows, self.inner)
        ops = self.operations
        ours = None if ops is None else lambda: ops.activate(gate, up, "silu")
        return ours, lambda: torch.nn.functional.silu(gate) * up

    def matrices(self) -> dict[str, tuple[int, list[int], str]]:
        """Products by name: elements, rows of each matrix, activation."""
        queries, keys = self.heads * self.size, self.kv_heads * self.size
        return {
            "q_k_v": (self.hidden, [queries, keys, keys], ""),
            "o": (queries, [self.hidden], ""),
            "gate_up": (self.hidden, [self.inner] * 2, "silu"),
            "down": (self.inner, [self.hidden], ""),
            "lm_head": (self.hidden, [self.vocabulary], ""),
        }

    def product(self, size: int, rows: list[int], activation: str) -> tuple[int, Pair]:
        """Bytes of weights, and the calls; each call takes the next copy of the weights.

        More rows than our operation takes are torch's alone, as they are in a pass.
        """
        num_bytes = 2 * size * sum(rows)
        copies = max(2, -(-COLD_BYTES // num_bytes)) if self.clock.is_cuda else 1
        sets = [[self.random(count, size) for count in rows] for _ in range(copies)]
        hidden = self.random(1, self.rows, size)
        ours_next, theirs_next = itertools.cycle(sets), itertools.cycle(sets)
        ops, none = self.operations, [None] * len(rows)

        def ours() -> object:
            assert ops is not None
            return ops.multiply(hidden, next(ours_next), none, activation)

        def theirs() -> object:
            results = [torch.nn.functional.linear(hidden, weight) for weight in next(theirs_next)]
            return torch.nn.functional.silu(results[0]) * results[1] if activation else results

        takes = ops is not None and self.rows <= MOST_ROWS
        return num_bytes, ((ours if takes else None), theirs)


def _line(clock: Clock, pair: Pair, **more: Any) -> dict[str, Any]:
    ours, theirs = pair
    line = {**more, "torch_us": clock.replay(theirs)}
    if ours is not None:
        line["us"] = clock.replay(ours)
        line["times_torch"] = line["us"] / line["torch_us"]
    return line


def run(clock: Clock, names: tuple[str, ...], batches: tuple[int, ...] = ROWS) -> dict[str, Any]:
    """Microseconds of each operation of one layer inside a replayed graph.

    The floor of a product is reading its weights once, at the rate of a copy (bytes read and
    written).

    Args:
        clock: Of the device.
        names: Keys of `models.SHAPES`.
        batches: Rows M.
    """
    bandwidth = clock.copy_bandwidth()
    lines = []
    for name, rows in itertools.product(names, batches):
        shapes = Shapes(clock, name, rows)
        where = {"model": name, "rows": rows}
        for small in ("norm", "rotation", "activation"):
            lines.append(_line(clock, getattr(shapes, small)(), operation=small, **where))
        for product, arguments in shapes.matrices().items():
            num_bytes, pair = shapes.product(*arguments)
            line = _line(clock, pair, operation=product, bytes=num_bytes, **where)
            floor = 1e6 * num_bytes / bandwidth
            for own in ("us", "torch_us"):
                if own in line:
                    line[own.replace("us", "times_floor")] = line[own] / floor
            if "us" in line:
                line["gigabytes_per_second"] = num_bytes / line["us"] / 1e3
            lines.append(line | {"floor_us": floor})
            if clock.is_cuda:
                torch.cuda.empty_cache()
    return {"copy_bytes_per_second": bandwidth, "rows": lines}
