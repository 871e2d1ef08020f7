"""Every kind of tensor that torch, NumPy and JAX can make, given to every entry that takes one.

Run as a program: prints one JSON object, ``{kind: {entry: what happened}}``, where what happened is
``["refused", type, message]``, ``["same"]`` (as with a plain tensor of the same values) or
``["different", description]``. A kind whose process died has ``{"died": status}``. Each kind has a
process of its own, forked before anything has been computed, so that a crash is one kind's.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import glimprouter as gr
from glimprouter import _C
from glimprouter.kv import append_kv_layers, gather_kv_layers

Make = Callable[[torch.Tensor], Any]  # a tensor of this kind with a plain tensor's values
TOKENS, HEADS, SIZE, VOCABULARY = 3, 2, 16, 300


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


class Functions(torch.Tensor):
    """A subclass whose torch functions are its own."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class Ufuncs(np.ndarray):
    """An array whose ufuncs are its own."""

    def __array_ufunc__(self, *arguments: Any, **options: Any) -> Any:
        return NotImplemented


class PlainArray(np.ndarray):
    """An array subclass that changes nothing."""


def _fake(plain: torch.Tensor) -> torch.Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return mode.from_tensor(plain)


def _resized(plain: torch.Tensor, nbytes: int) -> torch.Tensor:
    twin = plain.clone()
    twin.untyped_storage().resize_(nbytes)
    return twin


def _dtensor(plain: torch.Tensor) -> Any:
    from torch.distributed.tensor import DTensor, Replicate, init_device_mesh

    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("fake", rank=0, world_size=1)
    return DTensor.from_local(plain, init_device_mesh("cpu", (1,)), [Replicate()])


def _in_vmap(call: Callable[[Any], Any], plain: torch.Tensor) -> Any:
    return torch.vmap(lambda row: call(row) or row)(torch.stack([plain, plain]))


def _in_grad(call: Callable[[Any], Any], plain: torch.Tensor) -> Any:
    return torch.func.grad(lambda row: (call(row), row.sum())[1])(plain)


def _in_jvp(call: Callable[[Any], Any], plain: torch.Tensor) -> Any:
    return torch.func.jvp(lambda row: (call(row), row.sum())[1], (plain,), (plain,))


def _jagged(plain: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor([plain, plain], layout=torch.jagged)


def _masked(plain: torch.Tensor) -> Any:
    return np.ma.masked_greater(plain.numpy(), 0.5)


# Made by a function of the plain tensor, or used inside a transformation.
KINDS: dict[str, Make] = {
    "plain": lambda plain: plain,
    "parameter": lambda plain: torch.nn.Parameter(plain.clone()),
    "inference": lambda plain: _inference(plain),
    "plain subclass": lambda plain: plain.as_subclass(Plain),
    "numpy": lambda plain: plain.numpy(),
    "numpy subclass": lambda plain: plain.numpy().view(PlainArray),
    "negative bit": lambda plain: torch._neg_view(-plain),
    "imaginary part of a conjugate": lambda plain: torch.complex(plain, -plain).conj().imag,
    "conjugate bit": lambda plain: torch.complex(plain, plain).conj(),
    "fake": _fake,
    "functions of its own": lambda plain: plain.as_subclass(Functions),
    "two tensors": lambda plain: TwoTensor(plain, plain),
    "distributed": _dtensor,
    "freed storage": lambda plain: _resized(plain, 0),
    "shrunk storage": lambda plain: _resized(plain, 8),
    "meta": lambda plain: plain.to("meta"),
    "sparse": lambda plain: plain.to_sparse(),
    "sparse rows": lambda plain: plain.reshape(1, -1).to_sparse_csr(),
    "quantized": lambda plain: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
    "nested": lambda plain: torch.nested.nested_tensor([plain, plain]),
    "jagged": _jagged,
    "functional": lambda plain: torch._to_functional_tensor(plain),
    "zero": lambda plain: torch._efficientzerotensor(plain.shape),
    "mkldnn": lambda plain: plain.to_mkldnn(),
    "masked array": _masked,
    "array with ufuncs of its own": lambda plain: plain.numpy().view(Ufuncs),
    "byte-swapped": lambda plain: plain.numpy().astype(">f4"),
    "objects": lambda plain: plain.numpy().astype(object),
    "records": lambda plain: plain.numpy().view([("value", np.float32)]),
    "a list": lambda plain: plain.tolist(),
    "none": lambda plain: None,
}
INSIDE: dict[str, Callable[[Callable[[Any], Any], torch.Tensor], Any]] = {
    "vmap": _in_vmap,
    "grad": _in_grad,
    "jvp": _in_jvp,
}


def _inference(plain: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return plain.clone()


def _jax_kinds() -> dict[str, Make]:
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return {}

    def deleted(plain: torch.Tensor) -> Any:
        array = jnp.array(plain.numpy())
        array.delete()
        return array

    def in_jit(call: Callable[[Any], Any], plain: torch.Tensor) -> Any:
        return jax.jit(lambda row: (call(row), row)[1])(jnp.array(plain.numpy()))

    INSIDE["jax tracer"] = in_jit
    return {"jax": lambda plain: jnp.array(plain.numpy()), "deleted jax": deleted}


class World:
    """One of everything that an entry works on."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator)

        self.logits = random(2, VOCABULARY)
        self.heads = random(TOKENS, HEADS, SIZE)
        self.layers = random(1, TOKENS, HEADS, SIZE)
        self.hidden, self.weight, self.turns = random(TOKENS, SIZE), random(SIZE), random(3, SIZE)
        layout = gr.KvLayout(
            num_layers=1, num_kv_heads=HEADS, head_dim=SIZE, page_size=4, dtype="float32"
        )
        self.pool = gr.PagePool([layout], 16 * layout.page_bytes, layout.page_bytes)
        self.cache = gr.KvCache(self.pool, 2)
        self.row = self.cache.open([[1, 2, 3]])
        self.batch = self.cache.prepare(0, [self.row])
        self.pages = self.cache.pages(0, self.row)
        boundary = gr.StepBoundary([b"a", b"\n\n"] + [b"x"] * (VOCABULARY - 2))
        self.router = gr.StepRouter(boundary, gr.RouterConfig(temperature=0.0, threshold=99.0))
        self.rows = [self.router.open(), self.router.open()]
        self.outputs = self.router.outputs(2)
        gr.append_kv(self.pool, 0, self.batch, self.heads, self.heads)

    def attend(self, queries: Any, out: Any) -> None:
        gr.paged_attention(self.pool, 0, self.batch, queries, out, scale=0.25)

    def gathered(self) -> torch.Tensor:
        keys = torch.zeros_like(self.heads)
        gr.gather_kv(self.pool, 0, 0, self.pages, keys, torch.zeros_like(self.heads))
        return keys


# What each entry does with a tensor of the kind, and what comes of it, for a comparison.
Entry = Callable[[World, Make], Any]


def _step(world: World, make: Make) -> Any:
    world.router.step("small", make(world.logits), world.rows, world.outputs)
    return world.outputs.token


def _append(world: World, make: Make) -> Any:
    gr.append_kv(world.pool, 0, world.batch, make(world.heads + 1), world.heads)
    return world.gathered()


def _append_layers(world: World, make: Make) -> Any:
    append_kv_layers(world.pool, world.batch, world.layers, make(world.layers))
    return world.gathered()


def _attention(world: World, make: Make) -> Any:
    out = torch.zeros_like(world.heads)
    world.attend(make(world.heads), out)
    return out


def _written(make: Make, like: torch.Tensor, write: Callable[[Any], None]) -> Any:
    """What an output of this kind holds afterwards."""
    plain = torch.zeros_like(like)
    out = make(plain)
    write(out)
    return np.asarray(out.detach() if isinstance(out, torch.Tensor) else out)


def _gather(world: World, make: Make) -> Any:
    other = torch.zeros_like(world.heads)
    return _written(
        make, world.heads, lambda out: gr.gather_kv(world.pool, 0, 0, world.pages, out, other)
    )


def _gather_layers(world: World, make: Make) -> Any:
    other = torch.zeros_like(world.layers)
    return _written(
        make, world.layers, lambda out: gather_kv_layers(world.pool, 0, world.pages, other, out)
    )


def _rotate(world: World, make: Make) -> Any:
    heads = world.heads[None].transpose(1, 2).contiguous()
    out = [torch.zeros_like(heads) for _ in range(2)]
    turns = world.turns[None]
    _C.rotate_heads(make(heads), heads, turns, turns, *out)
    return out[0]


ENTRIES: dict[str, Entry] = {
    "glimpse": lambda world, make: gr.glimpse(make(world.logits)).entropy,
    "sample": lambda world, make: gr.sample(make(world.logits), temperature=1.0, seed=3),
    "nucleus": lambda world, make: gr.nucleus(make(world.logits[0]), temperature=1.0)[0],
    "step": _step,
    "append_kv": _append,
    "append_kv_layers": _append_layers,
    "paged_attention": _attention,
    "paged_attention, out": lambda world, make: _written(
        make, world.heads, lambda out: world.attend(world.heads, out)
    ),
    "gather_kv": _gather,
    "gather_kv_layers": _gather_layers,
    "rms_norm, out": lambda world, make: _written(
        make,
        world.hidden,
        lambda out: _C.rms_norm(world.hidden, world.weight, 1e-6, 0.0, out),
    ),
    "rms_norm, weight": lambda world, make: _C.rms_norm(
        world.hidden, make(world.weight), 1e-6, 0.0, torch.zeros_like(world.hidden)
    ),
    "rotate_heads": _rotate,
}


# Internal, called several times a layer on what a model has just computed: there the storage is not
# measured (StorageCheck in python/bindings/tensor_access.hpp).
OF_LAYERS = {name for name in ENTRIES if name.startswith(("rms_norm", "rotate_heads"))}


def _tried(call: Callable[[], Any], wanted: Any) -> list[Any]:
    try:
        result = call()
    except (TypeError, ValueError) as error:
        return ["refused", type(error).__name__, str(error)]
    except Exception as error:  # another kind is what the tests look for
        return ["different", f"{type(error).__name__}: {error}"]
    if result is None and wanted is None:
        return ["same"]
    same = np.array_equal(np.asarray(result), np.asarray(wanted))
    return ["same"] if same else ["different", f"{result} instead of {wanted}"]


def entries_of(kind: str) -> dict[str, Entry]:
    """What a kind is given to."""
    left_out = OF_LAYERS if kind == "shrunk storage" else set()
    return {name: entry for name, entry in ENTRIES.items() if name not in left_out}


def _all_entries(kind: str, use: Callable[[Entry, World], Any]) -> dict[str, list[Any]]:
    gr.set_num_threads(1)
    found = {}
    for name, entry in entries_of(kind).items():
        wanted = entry(World(), lambda plain: plain)
        found[name] = _tried(lambda e=entry: use(e, World()), wanted)
    return found


def _use_inside(transform: Callable[..., Any]) -> Callable[[Entry, World], Any]:
    """The entry called inside a transformation: with its tensor in the other's place."""

    def use(entry: Entry, world: World) -> Any:
        results: list[Any] = []
        transform(lambda traced: results.append(entry(world, lambda _: traced)), _tensor_of(entry))
        return results[0]

    return use


def _tensor_of(entry: Entry) -> torch.Tensor:
    """The plain tensor that the entry would have made into another kind."""
    seen: list[torch.Tensor] = []

    def note(plain: torch.Tensor) -> torch.Tensor:
        seen.append(plain)
        return plain

    entry(World(), note)
    return seen[0]


def main() -> None:
    """Tries all kinds, or those named on the command line."""
    warnings.simplefilter("ignore")
    kinds = KINDS | _jax_kinds()
    report: dict[str, Any] = {}
    for name in [*kinds, *INSIDE]:
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            use = (
                (lambda entry, world, make=kinds[name]: entry(world, make))
                if name in kinds
                else _use_inside(INSIDE[name])
            )
            os.write(write, json.dumps(_all_entries(name, use)).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            text = pipe.read()
        _, status = os.waitpid(child, 0)
        report[name] = json.loads(text) if status == 0 and text else {"died": status}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
