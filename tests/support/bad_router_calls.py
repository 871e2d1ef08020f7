"""Bad calls of the core, the router and its options; run by `test_bad_input.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import glimprouter as gr
from bad_input import OTHER_DELIMITER, VOCABULARY, Case, World, make_boundary

NAN = float("nan")


def shaped(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


def stepped(error: type[Exception], message: str, **changes: Any) -> Case:
    """``step`` with something wrong; a change that is a function takes the world."""

    def call(world: World) -> None:
        world.step(**{k: v(world) if callable(v) else v for k, v in changes.items()})

    return Case(call, error, message)


WRONG_TYPE = r"logits must be float32, bfloat16 or float16, got .*; convert them explicitly"
NO_TENSOR = "logits must be a tensor .torch, NumPy, JAX, or anything with __dlpack__ or a buffer.*"
NOT_OPEN = r"row {} is not open; rows come from open\(\), fork\(\) or load\(\)"

LOGITS = {
    "float64": stepped(TypeError, WRONG_TYPE, logits=shaped(1, VOCABULARY, dtype=np.float64)),
    "int64": stepped(TypeError, WRONG_TYPE, logits=torch.zeros(1, VOCABULARY, dtype=torch.int64)),
    "complex": stepped(TypeError, WRONG_TYPE, logits=shaped(1, VOCABULARY, dtype=np.complex64)),
    "bool": stepped(TypeError, WRONG_TYPE, logits=torch.zeros(1, VOCABULARY, dtype=torch.bool)),
    "foreign byte order": stepped(TypeError, WRONG_TYPE, logits=shaped(1, VOCABULARY, dtype=">f4")),
    "one dimension": stepped(
        ValueError, r"shape \[rows, vocabulary\], got 1 dim", logits=shaped(VOCABULARY)
    ),
    "three dimensions": stepped(
        ValueError, r"got 3 dimensions; take .* logits\[:, -1\]", logits=shaped(1, 1, VOCABULARY)
    ),
    "inner stride": stepped(
        ValueError,
        r"stride 1\), got stride 2; call \.contiguous\(\) first",
        logits=shaped(1, 2 * VOCABULARY)[:, ::2],
    ),
    "meta device": stepped(
        ValueError,
        "logits has no memory that can be read",
        logits=torch.zeros(1, VOCABULARY, device="meta"),
    ),
    "sparse": stepped(
        ValueError, "no memory that can be read", logits=torch.zeros(1, VOCABULARY).to_sparse()
    ),
    "object": stepped(TypeError, f"{NO_TENSOR} got object", logits=[object()][0]),
    "nested list": stepped(TypeError, f"{NO_TENSOR} got list", logits=[[0.0] * VOCABULARY]),
    "no logits": stepped(TypeError, f"{NO_TENSOR} got NoneType", logits=None),
    "no vocabulary": stepped(ValueError, "empty vocabulary dimension", logits=shaped(1, 0)),
    "too narrow": stepped(
        ValueError,
        "logits are 11 wide, narrower than the vocabulary of 12; wrong model, or wrong tokenizer",
        logits=shaped(1, 11),
    ),
    "more logits": stepped(ValueError, "have 2 rows, but 1 rows", logits=shaped(2, VOCABULARY)),
    "glimpse of float64": Case(lambda w: gr.glimpse(np.zeros((1, 3))), TypeError, WRONG_TYPE),
    "sample of a list": Case(lambda w: gr.sample([[0.0]]), TypeError, NO_TENSOR),
    "nucleus of a batch": Case(lambda w: gr.nucleus(shaped(2, 3)), ValueError, "takes one row"),
    "top k entropy of text": Case(
        lambda w: gr.glimpse(w.logits, entropy_top_k="20"), TypeError, "entropy_top_k.* got '20'"
    ),
}

ROWS = {
    "unknown row": stepped(IndexError, NOT_OPEN.format(99), rows=[99]),
    "negative row": stepped(IndexError, NOT_OPEN.format(-1), rows=[-1]),
    "closed row": stepped(IndexError, NOT_OPEN.format(4), rows=lambda w: [w.closed]),
    "row twice": stepped(
        ValueError,
        "row 0 is named twice in one call",
        rows=lambda w: [w.small, w.small],
        logits=shaped(2, VOCABULARY),
    ),
    "good row and bad row": stepped(
        IndexError, NOT_OPEN.format(7), rows=lambda w: [w.small, 7], logits=shaped(2, VOCABULARY)
    ),
    "row waits for the large model": stepped(
        ValueError,
        r'row 1 does not wait for the small model: .* large model; use the rows of pending\("small',
        rows=lambda w: [w.large],
    ),
    "row waits for the small model": stepped(
        ValueError, r'waits for the small model; use the rows of pending\("large', model="large"
    ),
    "row waits for a decision": stepped(
        ValueError, r"it waits for decide\(\)", rows=lambda w: [w.manual]
    ),
    "row is done": stepped(ValueError, "it is done", rows=lambda w: [w.done]),
    "more rows": stepped(
        ValueError, "logits have 1 rows, but 2 rows are named", rows=lambda w: [w.small, w.large]
    ),
    "rows of floats": stepped(TypeError, "rows must hold integers, got float", rows=[0.0]),
    "rows of booleans": stepped(TypeError, "rows must hold integers, got bool", rows=[False]),
    "float tensor of rows": stepped(
        TypeError, "1-D int32 or int64 tensor, or a list, got 1-D float64", rows=np.zeros(1)
    ),
    "rows of two dimensions": stepped(
        TypeError, "1-D int32 or int64 tensor.* got 2-D int64", rows=np.zeros((1, 1), np.int64)
    ),
    "rows as text": stepped(TypeError, "rows must be a list or a 1-D .* got str", rows="0"),
    "row of 40 bits": stepped(ValueError, "1099511627776, .* not fit 32 bits", rows=[2**40]),
    "model": stepped(ValueError, 'must be "small" or "large", got \'medium\'', model="medium"),
    "no model": stepped(ValueError, 'must be "small" or "large", got None', model=None),
    "small outputs": stepped(
        ValueError,
        r"outputs were made for 0 rows, the batch has 1; call router\.outputs\(1\)",
        outputs=lambda w: w.router.outputs(0),
    ),
    "elements of no size": stepped(
        ValueError, "elements of no size", logits=np.empty((1, 12), "V0")
    ),
    "no outputs": stepped(TypeError, r"out must come from router.outputs", outputs=None),
    "outputs for another vocabulary": stepped(
        ValueError,
        "logprob_ids holds 12, outside the vocabulary of 12",
        outputs=lambda w: w.router.outputs(1, logprob_ids=[12]),
    ),
}


def drafted(error: type[Exception], message: str, method: str = "verify", **changes: Any) -> Case:
    """A right call of ``verify`` for two drafts of the large row but for the changes."""

    def call(world: World) -> None:
        arguments = {
            "model": "large" if method == "verify" else "small",
            "logits": shaped(3 if method == "verify" else 1, VOCABULARY),
            "rows": [world.large],
            "counts": [2],
            "drafts": [1, 2],
            "outputs": world.outputs,
            **{name: v(world) if callable(v) else v for name, v in changes.items()},
        }
        getattr(world.router, method)(*arguments.values())

    return Case(call, error, message)


DRAFTS = {
    "draft of no token": drafted(
        ValueError, "draft 12 lies outside the large model's vocabulary of 12", drafts=[1, 12]
    ),
    "negative draft": drafted(ValueError, "draft -1 lies outside the large", drafts=[-1, 2]),
    "too few drafts": drafted(ValueError, "the counts name 2 drafts, got 1", drafts=[1]),
    "too few counts": drafted(ValueError, "one count of drafts a row .*: 1, got 0", counts=[]),
    "negative count": drafted(ValueError, "a row cannot have -1 drafts", counts=[-1], drafts=[]),
    "drafts of floats": drafted(TypeError, "drafts must hold integers", drafts=[0.5, 1]),
    "too few rows of logits": drafted(
        ValueError, "logits have 1 rows, but 3 rows are named", logits=shaped(1, VOCABULARY)
    ),
    "small outputs for drafts": drafted(
        ValueError,
        r"made for 2 rows, the batch has 3; call router\.outputs\(3\)",
        outputs=lambda w: w.router.outputs(2),
    ),
    "drafts of a row that is not in a large step": drafted(
        ValueError, "row 0 does not wait for the large model", rows=lambda w: [w.small]
    ),
    "verified by the other model": drafted(
        ValueError, "row 1 does not wait for the small model", model="small"
    ),
    "verified twice": drafted(
        ValueError,
        "row 1 is named twice",
        rows=lambda w: [w.large] * 2,
        counts=[1, 1],
        logits=shaped(4, VOCABULARY),
        outputs=lambda w: w.router.outputs(4),
    ),
    "more drafts than a step takes": drafted(
        ValueError,
        "takes at most 512 tokens more from the large model, got 512 drafts",
        counts=[512],
        drafts=[1] * 512,
        logits=shaped(513, VOCABULARY),
        outputs=lambda w: w.router.outputs(513),
    ),
    "draft for a row of its own": drafted(
        ValueError, "row 0 does not wait for the large", "draft", rows=lambda w: [w.small]
    ),
    "draft by the writer": drafted(
        ValueError, "row 1 does not wait for the small model", "draft", model="large"
    ),
    "draft behind no token": drafted(
        ValueError, "draft 99 lies outside the small model's", "draft", drafts=[1, 99]
    ),
}


def damaged(world: World, offset: int) -> bytes:
    """A saved row with one bit changed."""
    saved = bytearray(world.router.save(world.small))
    saved[offset] ^= 1
    return bytes(saved)


def save_elsewhere(boundary: gr.StepBoundary) -> bytes:
    router = gr.StepRouter(boundary)
    return router.save(router.open())


CUT = "saved sequence is damaged or cut short"
FULL = "all 1 rows are in use; close one, or construct the router with a larger max_sequences"
ROUTER = {
    "open when full": Case(lambda w: w.full.open(), RuntimeError, FULL),
    "fork when full": Case(lambda w: w.full.fork(0), RuntimeError, FULL),
    "load when full": Case(lambda w: w.full.load(w.router.save(w.small)), RuntimeError, FULL),
    "fork of a closed row": Case(lambda w: w.router.fork(w.closed), IndexError, NOT_OPEN.format(4)),
    "closed twice": Case(lambda w: w.router.close(w.closed), IndexError, NOT_OPEN.format(4)),
    "save of no row": Case(lambda w: w.router.save(99), IndexError, NOT_OPEN.format(99)),
    "phase of no row": Case(lambda w: w.router.phase(-1), IndexError, NOT_OPEN.format(-1)),
    "rewind too far": Case(
        lambda w: w.router.rewind(w.small, 2),
        ValueError,
        "cannot rewind row 0 by 2 tokens: it has generated 1",
    ),
    "rewind backwards": Case(lambda w: w.router.rewind(w.small, -1), ValueError, "by -1 tokens"),
    "rewind into the closing ids": Case(
        lambda w: w.router.rewind(w.done, 1),
        ValueError,
        "inside the closing ids, which are appended as one; rewind to",
    ),
    "load of nothing": Case(lambda w: w.router.load(b""), ValueError, r"come from save\(\)"),
    "load of foreign bytes": Case(
        lambda w: w.router.load(b"\x89PNG" * 200), ValueError, r"not a saved sequence .*save\(\)"
    ),
    "load of a cut file": Case(
        lambda w: w.router.load(w.router.save(w.small)[:-3]), ValueError, f"{CUT}|not a saved"
    ),
    "load of a damaged state": Case(lambda w: w.router.load(damaged(w, 120)), ValueError, CUT),
    "load of a damaged end": Case(lambda w: w.router.load(damaged(w, -1)), ValueError, CUT),
    "load with a tail": Case(
        lambda w: w.router.load(w.router.save(w.small) + b"x"), ValueError, CUT
    ),
    "load of another version": Case(
        lambda w: w.router.load(damaged(w, 9)), ValueError, "another version .* this one reads 6"
    ),
    "load with another boundary": Case(
        lambda w: w.router.load(save_elsewhere(make_boundary(b"abcdef.\n"))),
        ValueError,
        "saved by a router with another boundary",
    ),
    "decide nothing": Case(
        lambda w: w.router.decide("small", [w.small], w.outputs),
        ValueError,
        "row 0 has no decision to make: it waits for the small model",
    ),
    "decide what the router decides": Case(
        lambda w: w.router.decide("large", [w.small], w.outputs),
        ValueError,
        "row 0 has no decision to make: it waits for the small model",
    ),
    "decide for nobody": Case(
        lambda w: w.router.decide("both", [w.manual], w.outputs), ValueError, "got 'both'"
    ),
    "decide a row twice": Case(
        lambda w: w.router.decide("large", [w.manual] * 2, w.outputs), ValueError, "named twice"
    ),
    "pending of no model": Case(lambda w: w.router.pending("huge"), ValueError, "got 'huge'"),
    "negative outputs": Case(lambda w: w.router.outputs(-1), ValueError, "n must lie in"),
    "outputs by text": Case(lambda w: w.router.outputs("4"), TypeError, "n must be an integer"),
    "outputs without mask": Case(
        lambda w: w.router.outputs(1, fields=3), TypeError, "mask of glimprouter.OutputField"
    ),
    "fractional logprob id": Case(
        lambda w: w.router.outputs(1, logprob_ids=[0.5]), TypeError, "integer, got 0.5"
    ),
    "no boundary": Case(lambda w: gr.StepRouter(None), TypeError, "a StepBoundary, got NoneType"),
    "no large boundary": Case(
        lambda w: gr.StepRouter(make_boundary(), large_boundary=3), TypeError, "got int"
    ),
    "no rows": Case(
        lambda w: gr.StepRouter(make_boundary(), max_sequences=0), ValueError, "max_sequences.*got"
    ),
    "config as dict": Case(
        lambda w: gr.StepRouter(make_boundary(), {}), TypeError, "a RouterConfig, got dict"
    ),
    "different delimiters": Case(
        lambda w: gr.StepRouter(make_boundary(), large_boundary=OTHER_DELIMITER),
        ValueError,
        "different delimiters; steps would end differently",
    ),
    "step in another thread": Case(
        lambda w: w.in_another_thread(w.step),
        RuntimeError,
        r"belongs to another thread; use one router per thread, or call attach\(\)",
    ),
    "open in another thread": Case(
        lambda w: w.in_another_thread(w.router.open), RuntimeError, r"call attach\(\)"
    ),
}

# Option, bad values with a part of the message behind "NAME must".
OPTIONS: list[tuple[str, Any, type[Exception], str]] = [
    ("threshold", NAN, ValueError, r"lie in \[0, inf\], got nan"),
    ("threshold", -0.1, ValueError, r"lie in \[0, inf\], got -0.1"),
    ("threshold", "1", TypeError, "be a number, got '1'"),
    ("threshold", True, TypeError, "be a number, got True"),
    ("comparison", "<", ValueError, "be one of '>', '>=', got '<'"),
    ("comparison", 1, ValueError, "be one of '>', '>=', got 1"),
    ("entropy_top_k", 0, ValueError, r"lie in \[1, .*None for the full entropy.*got 0"),
    ("entropy_top_k", 20.0, TypeError, "be an integer, got 20.0"),
    ("temperature", 1e-5, ValueError, r"lie in \[0.0001, 10000\] \(or 0 for greedy\), got 1e-05"),
    ("temperature", -1.0, ValueError, ".*or 0 for greedy"),
    ("temperature", NAN, ValueError, "lie in .* got nan"),
    ("temperature", None, TypeError, "be a number, got None"),
    ("top_p", 0.0, ValueError, r"lie in \(0, 1\] \(1 is off\), got 0.0"),
    ("top_p", 1.01, ValueError, r"lie in \(0, 1\]"),
    ("top_p", "x", TypeError, "be a number"),
    ("top_k", -1, ValueError, r"lie in \[0, .*0 is off.*got -1"),
    ("top_k", 2.5, TypeError, "be an integer"),
    ("min_p", 1.5, ValueError, r"lie in \[0, 1\] \(0 is off\)"),
    ("min_p", [0.1], TypeError, "be a number"),
    ("max_step_tokens", 0, ValueError, r"lie in \[1, 2\^31 - 1\], got 0"),
    ("max_step_tokens", 2**31, ValueError, r"lie in .* got 2147483648"),
    ("max_step_tokens", True, TypeError, "be an integer, got True"),
    ("max_think_tokens", 0, ValueError, r"lie in \[1"),
    ("max_think_tokens", "9", TypeError, "be an integer, got '9'"),
    ("max_answer_tokens", -1, ValueError, r"lie in \[0"),
    ("max_answer_tokens", "9", TypeError, "be an integer, got '9'"),
    ("first_steps_large", -1, ValueError, r"lie in \[0"),
    ("first_steps_large", 0.5, TypeError, "be an integer"),
    ("large_tokens", 0, ValueError, r"lie in \[1"),
    ("large_tokens", 1.5, TypeError, "be an integer"),
    ("answer_model", "medium", ValueError, "be one of 'small', 'large', got 'medium'"),
    ("answer_model", None, ValueError, "be one of 'small', 'large', got None"),
    ("repetition_guard", 1, TypeError, "be a bool, got 1"),
    ("route", "random", ValueError, "be one of 'auto', 'small', 'large', 'manual', got 'random'"),
    ("route", 0, ValueError, "be one of 'auto'"),
    ("seed", -1, ValueError, r"lie in \[0, 2\^64\), got -1"),
    ("seed", 1.5, TypeError, "be an integer, got 1.5"),
    ("substream", 2**64, ValueError, r"lie in \[0, 2\^64\)"),
    ("substream", "a", TypeError, "be an integer, got 'a'"),
]


def opened(name: str, value: Any) -> Callable[[World], object]:
    return lambda world: world.router.open(**{name: value})


OPENED = {
    f"{name} {value!r}": Case(opened(name, value), error, f"{name} must {message}")
    for name, value, error, message in OPTIONS
} | {
    "unknown option": Case(
        lambda w: w.router.open(tau=1.0),
        TypeError,
        "unknown option 'tau'; RouterConfig has .*threshold",
    ),
    "unknown field": Case(lambda w: gr.RouterConfig(tau=1.0), TypeError, "argument 'tau'"),
}
