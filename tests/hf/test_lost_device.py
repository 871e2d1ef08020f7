"""A device that is lost during a run: one error a call, and what the records know stays."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import glimprouter as gr
import hf_pairs
from glimprouter.hf import RoutedModel, Run
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.engine.base import Engine
from glimprouter.hf.graphs.pass_graphs import PassGraphs
from glimprouter.hf.graphs.recorders import RepeatingRecorder
from hf_pairs import TOKENIZER, TRIAL
from hf_runs import begun, finish, routed, uninterrupted, written
from hf_watch import calling

ILLEGAL_ADDRESS, CAPTURE_INVALIDATED = 700, 901
WORDS = r"is lost: .*illegal.* \(cudaErrorIllegalAddress\); .*start it anew"


def accelerator_error(code: int) -> torch.AcceleratorError:
    """As torch raises it."""
    what = "an illegal memory access was encountered" if code == ILLEGAL_ADDRESS else "a capture"
    error = torch.AcceleratorError(f"CUDA error: {what}\nCUDA kernel errors might be asynchronous")
    error.error_code = code  # type: ignore[attr-defined]
    return error


def native_error() -> gr.DeviceLost:
    """As the core raises it."""
    words = "waiting for the device: illegal (cudaErrorIllegalAddress); start it anew"
    return gr.DeviceLost(f"cuda:0 is lost: {words}")


@contextmanager
def lost(run: Run) -> Iterator[None]:
    """The router's device is asked for nothing, nor is a model."""
    router, engine = run._sequences.router, run._sequences.engine

    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("the device was asked")

    names = ("step", "verify", "draft", "state", "pending", "open", "close", "save", "load")
    with pytest.MonkeyPatch.context() as patch:
        for name in (*names, "fork", "rewind", "end_thinking", "decide"):
            patch.setattr(type(router), name, asked)
        for name in ("forward", "open", "close", "save", "restore", "preempt", "fork"):
            patch.setattr(type(engine), name, asked)
        yield


def calls_that_need_the_device(run: Run, saved: bytes) -> list[Callable[[], Any]]:
    return [
        run.step,
        lambda: next(run),
        lambda: run.add([50, 60, 70]),
        lambda: run.load(saved),
        lambda: run.fork(0),
        lambda: run.rewind(0, 1),
        lambda: run.end_thinking(0),
        lambda: run.catch_up(0),
        lambda: run.save(0),
        lambda: run.counts(0),
    ]


def loses_a_device(run: Run, model: Any, error: BaseException) -> str:
    """In a pass of a model; what is said."""

    def fail(_: int) -> None:
        raise error

    with calling(model, fail), pytest.raises(gr.DeviceLost, match=WORDS) as caught:
        finish(run)
    return str(caught.value)


@pytest.mark.both_engines
@pytest.mark.parametrize("name", ["qwen3", "two tokenizers"])
@pytest.mark.parametrize("place", ["small", "large"])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "torch's"])
def test_every_call_says_the_same_and_what_is_known_stays(
    name: str, place: str, ours: bool
) -> None:
    model, prompts = routed(name, max_sequences=2)
    run = begun(model, prompts[:3], 14)
    saved = run.save(0)
    known = [(run.generated(i), run.trace(i)) for i in range(3)]
    error = native_error() if ours else accelerator_error(ILLEGAL_ADDRESS)
    said = loses_a_device(run, getattr(model, place), error)
    known = [(run.generated(i), run.trace(i)) for i in range(3)]  # of passes before that one
    with lost(run):
        for _ in range(2):
            for call in calls_that_need_the_device(run, saved):
                with pytest.raises(gr.DeviceLost) as caught:
                    call()
                assert str(caught.value) == said
        assert [(run.generated(i), run.trace(i)) for i in range(3)] == known
        assert run.sequences == [0, 1, 2]
        run.hold(0)
        run.go_on(0)
        results = [run.cancel(index) for index in (2, 0, 1)]
        assert run.sequences == []
        for result, index in zip(results, (2, 0, 1), strict=True):
            generated, trace = known[index]
            assert result.trace.end_reason == "cancelled"
            assert result.trace.steps[: len(trace.steps) - 1] == trace.steps[:-1]
            if name == "qwen3":
                assert result.token_ids == generated
            else:
                assert bool(result.token_ids) == bool(generated)
        with pytest.raises(ValueError, match="sequence 0 has ended"):
            run.cancel(0)
        events = run.step()  # nobody has read them, and they ask for nothing
        assert [e.sequence for e in events if e.kind == "done"] == [2, 0, 1]
        with pytest.raises(gr.DeviceLost):
            run.step()
        run.release(0)
        run.usage()


@pytest.mark.both_engines
def test_an_error_of_torch_that_does_not_stay_is_as_every_other() -> None:
    model, prompts = routed("qwen3")
    run = begun(model, prompts[:1], 14)

    def fail(_: int) -> None:
        raise accelerator_error(CAPTURE_INVALIDATED)

    with calling(model.small, fail), pytest.raises(torch.AcceleratorError):
        finish(run)
    assert written(finish(run)[0]) == written(uninterrupted("qwen3"))


@pytest.mark.both_engines
def test_a_router_whose_device_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass of the model came back, and the step behind it did not."""
    model, prompts = routed("qwen3")
    run = begun(model, prompts[:2], 14)
    known = [run.generated(i) for i in range(2)]

    def fail(*_: Any) -> None:
        raise native_error()

    monkeypatch.setattr(gr.StepRouter, "step", fail)
    with pytest.raises(gr.DeviceLost, match=WORDS):
        run.step()
    with lost(run):
        assert [run.generated(i) for i in range(2)] == known
        assert run.cancel(1).token_ids == known[1]
        run.step()
        with pytest.raises(gr.DeviceLost, match=WORDS):
            run.step()


@pytest.mark.both_engines
def test_drafts_are_no_text_of_a_sequence_that_is_cancelled() -> None:
    pair = hf_pairs.trained_pair()
    run = pair.routed(drafts=8, route="large").stream(pair.prompts[:1])
    record = run._sequences.record(0)
    with pytest.MonkeyPatch.context() as patch:
        forward = Engine.forward

        def fail(engine: Engine, name: str, records: Any) -> Any:
            if name == "large" and len(record.drafts):
                raise native_error()
            return forward(engine, name, records)

        patch.setattr(Engine, "forward", fail)
        with pytest.raises(gr.DeviceLost):
            list(run)
    assert len(record.drafts)
    with lost(run):
        assert run.cancel(0).token_ids == run.generated(0)


def test_a_trial_does_not_take_a_lost_device_for_an_odd_model() -> None:
    pair = hf_pairs.random_pair("qwen3")

    def fail(*_: Any) -> None:
        raise accelerator_error(ILLEGAL_ADDRESS)

    token = TRIAL.set(True)
    handle = pair.small.model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(gr.DeviceLost, match=WORDS):
            RoutedModel(pair.small, pair.large, TOKENIZER, gr.RouterConfig(threshold=1.0))
    finally:
        handle.remove()
        TRIAL.reset(token)


class BrokenGraphs(PassGraphs):
    """Passes that fail as graphs: on the CPU there are none."""

    error: BaseException

    def _compute(self, *_: Any) -> torch.Tensor:
        raise self.error


def graphs_and_batch() -> tuple[BrokenGraphs, gr.RaggedBatch]:
    model = hf_pairs.random_pair("qwen3").small
    pool = gr.PagePool([kv_layout(model)], 1 << 22)
    cache = gr.KvCache(pool, 2)
    batch = cache.prepare(0, [cache.open([[50, 60, 70]])])
    return BrokenGraphs("small", model, pool, 0, 2, RepeatingRecorder()), batch


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "torch's"])
def test_a_graph_on_a_lost_device_is_not_computed_eagerly(ours: bool) -> None:
    graphs, batch = graphs_and_batch()
    graphs.error = native_error() if ours else accelerator_error(ILLEGAL_ADDRESS)
    with warnings.catch_warnings(), calling(graphs._model, eager_pass):
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(gr.DeviceLost, match=WORDS):
                graphs(batch, np.array([2], dtype=np.int32))
    assert graphs.refused is None


def eager_pass(_: int) -> None:
    raise AssertionError("the model was asked")


def test_a_graph_that_breaks_is_still_computed_eagerly() -> None:
    graphs, batch = graphs_and_batch()
    graphs.error = accelerator_error(CAPTURE_INVALIDATED)
    with pytest.warns(RuntimeWarning, match="are computed eagerly"):
        logits = graphs(batch, np.array([2], dtype=np.int32))
    assert logits.shape[0] == 1
    assert graphs.refused is not None


def test_codes_of_cuda() -> None:
    """What stays loses the device; what a call alone did wrong, or a capture, does not."""
    losing = {46, 214, 220, 226, 700, 702, 709, 710, *range(714, 720), 721, 810, 911}
    for code in itertools.chain(range(120), range(200, 240), range(600, 1000)):
        if code in losing:
            with pytest.raises(gr.DeviceLost, match=r"^cuda:1 is lost: waiting \(cudaError\w+\); "):
                gr._C.check_device_error(code, "cuda:1", "waiting")
        else:
            gr._C.check_device_error(code, "cuda:1", "waiting")
