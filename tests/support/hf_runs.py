"""Runs that are stopped in the middle: what the tests of their calls share."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

import hf_pairs
import hf_translated
from glimprouter.hf import Result, RoutedModel, Run
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.state.form import find_state_form
from glimprouter.kv import PagePool


def routed(name: str, **options: Any) -> tuple[RoutedModel, list[Any]]:
    """A pair that draws its tokens, and its prompts."""
    config = {"temperature": 0.8, "max_think_tokens": 50, "max_answer_tokens": 8}
    if name == "two tokenizers":
        model = hf_translated.routed("gpt2", "qwen", **config, **options)
        return model, list(hf_translated.prompts("gpt2", "qwen"))
    pair = hf_pairs.pair_of(name)
    model = pair.routed(**config, max_sequences=options.pop("max_sequences", 64))
    model.kv_memory_bytes = options.pop("kv_memory_bytes", None)
    return model, pair.prompts


def uninterrupted(name: str) -> Result:
    """What the first prompt's run comes to when nobody stops it."""
    return _uninterrupted(name, hf_pairs.ENGINE.get())


@cache
def _uninterrupted(name: str, engine: str) -> Result:
    model, prompts = routed(name)
    return finish(model.stream(prompts[:1]))[0]


def finish(run: Run) -> dict[int, Result]:
    """The results of all sequences."""
    return {event.sequence: event.result for event in run if event.result is not None}


def written(result: Result) -> tuple[Any, ...]:
    """What must be the same to the bit, times aside."""
    steps = [(s.model, s.text, s.num_tokens, s.end_reason) for s in result.trace.steps]
    return result.token_ids, steps, result.answer, result.trace.end_reason


def finish_with_failures(model: RoutedModel, prompts: list[Any], layer: Any) -> dict[int, Result]:
    """The results of a run in which a layer of one of the models fails now and then, midway."""
    run = model.stream(prompts)

    def fail(*_: Any) -> None:
        raise MemoryError("no room for this pass")

    for passes in (3, 11, 19):
        for _ in range(passes):
            run.step()
        handle = layer.register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            list(run)
        handle.remove()
    return finish(run)


def entropies(result: Result) -> list[float]:
    """Of the glimpses."""
    return [step.entropy for step in result.trace.steps if step.entropy is not None]


def begun(model: RoutedModel, prompts: list[Any], passes: int) -> Run:
    """A run in the middle."""
    run = model.stream(prompts)
    for _ in range(passes):
        run.step()
    return run


def rewound(run: Run, sequence: int, count: int) -> bool:
    """Whether it could be: the closing ids are appended as one, and nothing lies within them."""
    before = run.generated(sequence)
    message = ""
    try:
        run.rewind(sequence, count)
    except ValueError as error:
        message = str(error)
    if message:
        assert "inside the closing ids" in message
        assert run.generated(sequence) == before
    return not message


def sector_bytes(model: RoutedModel) -> int:
    """What an arena for both models hands out at a time."""
    models = (model.small, model.large)
    return PagePool.default_sector_bytes([kv_layout(one, find_state_form(one)) for one in models])
