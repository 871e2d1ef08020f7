"""Passes that follow one another in one native call write what single passes write."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import glimprouter as gr
from glimprouter.demo_pair import RECOMMENDED_THRESHOLD, large_path, small_path
from glimprouter.demo_pair.task import held_out_problems
from glimprouter.hf import Result, RoutedModel
from glimprouter.hf.engine.paged import PagedEngine
from glimprouter.hf.run import passes
from glimprouter.hf.run.run import Run
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.kv import OutOfPages

PROMPTS = [problem.prompt for problem in held_out_problems(3, seed=11)]
MODES = {
    "routed": {},
    "routed, drawn": {"temperature": 0.9, "top_p": 0.9},
    "the large model alone": {"route": "large"},
    "the small model alone": {"route": "small"},
    "steps that the large model begins": {"large_tokens": 2, "threshold": 0.05},
    "short budgets": {"max_think_tokens": 23, "max_answer_tokens": 4, "max_step_tokens": 5},
}


def own_models() -> tuple[Any, ...]:
    """Both models and a tokenizer: hooks that others leave on shared models would be heard."""
    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        for path in (small_path(), large_path())
    ]
    tokenizer = AutoTokenizer.from_pretrained(small_path(), local_files_only=True)
    return (*models, tokenizer)


def routed(models: tuple[Any, ...], drafts: Any = 0, **config: Any) -> RoutedModel:
    """A pair of them, greedy unless told otherwise."""
    options = {
        "threshold": RECOMMENDED_THRESHOLD,
        "temperature": 0.0,
        "max_think_tokens": 120,
        "max_answer_tokens": 24,
        **config,
    }
    return RoutedModel(
        *models,
        gr.RouterConfig(**options),
        engine="paged",
        max_sequences=3,
        drafts=drafts,
        on_invalid="end",
    )


class Ahead:
    """Watches the engine: how many passes went ahead, or lets none do so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes = 0
        self.allowed = True
        native, note = PagedEngine.write_ahead, PagedEngine.note_ahead

        def write_ahead(engine: PagedEngine, *arguments: Any) -> None:
            if self.allowed:
                native(engine, *arguments)

        def note_ahead(engine: PagedEngine, model: str, record: SequenceRecord) -> None:
            before = record.num_passes[model]
            note(engine, model, record)
            self.passes += record.num_passes[model] - before

        monkeypatch.setattr(PagedEngine, "write_ahead", write_ahead)
        monkeypatch.setattr(PagedEngine, "note_ahead", note_ahead)
        # A slow machine goes as far as a fast one.
        monkeypatch.setattr(passes, "_MOST_SECONDS_AHEAD", 10.0)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Ahead:
    return Ahead(monkeypatch)


def said(result: Result) -> dict[str, Any]:
    """All of a result but the time that it took."""
    found = dataclasses.asdict(result)

    def without_time(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_time(v) for k, v in value.items() if "seconds" not in k}
        return [without_time(each) for each in value] if isinstance(value, list) else value

    return dict(without_time(found))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("drafts", [0, 4])
@pytest.mark.parametrize("mode", MODES)
def test_results_are_those_of_single_passes(
    ahead: Ahead, mode: str, drafts: int, count: int
) -> None:
    pair = routed(own_models(), drafts, **MODES[mode])
    found = [said(result) for result in pair.generate(PROMPTS[:count], 3)]
    gone = ahead.passes
    ahead.allowed = False
    assert found == [said(result) for result in pair.generate(PROMPTS[:count], 3)]
    # The large model may have drafts to wait for, whoever writes.
    assert (gone > 0) != (mode == "the large model alone" and drafts > 0)


def quiet_run(pair: RoutedModel, prompts: list[str]) -> Run:
    """A run whose events are those of steps."""
    return pair._start(prompts, None, {}, None, stream_tokens=False)


def test_events_are_those_of_single_passes(ahead: Ahead) -> None:
    pair = routed(own_models())
    kept = []
    for allowed in (True, False):
        ahead.allowed = allowed
        events = quiet_run(pair, PROMPTS[:1])
        kept.append([(e.kind, e.token_id, e.text, e.model, e.entropy) for e in events])
    assert ahead.passes > 0
    assert kept[0] == kept[1]


def test_whoever_takes_tokens_one_by_one_finds_no_further_one_written(ahead: Ahead) -> None:
    run = routed(own_models()).stream(PROMPTS[:1])
    for count in range(1, 30):
        tokens = [event for event in run.step() if event.kind == "token"]
        while not tokens:
            tokens = [event for event in run.step() if event.kind == "token"]
        assert len(run.generated(0)) == count
    assert ahead.passes == 0


def test_memory_that_runs_out_on_the_way(ahead: Ahead) -> None:
    """A page is missing in the middle: somebody makes room, as between single passes."""
    pair = routed(own_models(), route="small")
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    want = [result.token_ids for result in pair.generate(prompts)]
    raised = 0
    compute = PagedEngine.forward

    def forward(engine: PagedEngine, model: str, records: Any) -> Any:
        nonlocal raised
        if len(records) > 1 and raised < 5 and ahead.passes > 3 * (1 + raised):
            raised += 1
            raise OutOfPages("none left")
        return compute(engine, model, records)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PagedEngine, "forward", forward)
        assert [result.token_ids for result in pair.generate(prompts)] == want
    assert raised == 5


def test_logits_that_become_invalid_on_the_way(ahead: Ahead) -> None:
    """A sequence ends with what it has written until then, and the reason is told once."""
    models = own_models()
    pair = routed(models, route="small")
    token = pair.generate([PROMPTS[0]])[0].token_ids[20]
    with torch.no_grad():
        models[0].get_input_embeddings().weight[token] = float("nan")
    messages = []
    for allowed in (True, False):
        ahead.allowed = allowed
        run = quiet_run(pair, PROMPTS[:1])
        messages.append([(e.kind, e.message) for e in run if e.kind in ("error", "step")])
        messages[-1].append(("written", run.generated(0)))
    assert messages[0] == messages[1]
    assert any(kind == "error" for kind, _ in messages[0])


@pytest.mark.parametrize("exact", [True, False])
def test_a_run_goes_back_and_forks_within_what_was_written_ahead(
    ahead: Ahead, *, exact: bool
) -> None:
    pair = routed(own_models())
    want = pair.generate([PROMPTS[1]])[0].token_ids
    run = quiet_run(pair, PROMPTS[1:2])
    while len(run.generated(0)) < 40:
        run.step()
    run.rewind(0, 13, exact=exact)
    twin = run.fork(0, substream=0)
    results = {event.sequence: event.result for event in run if event.kind == "done"}
    assert ahead.passes > 0
    for sequence in (0, twin):
        result = results[sequence]
        assert result is not None
        assert result.token_ids == want


def test_a_changed_model_goes_no_further_ahead(ahead: Ahead) -> None:
    models = own_models()
    run = quiet_run(routed(models, route="small", answer_model="small"), PROMPTS[2:])
    while ahead.passes == 0:
        run.step()
    heard: list[int] = []
    models[0].register_forward_hook(lambda *_: heard.append(1))
    before = ahead.passes
    for _ in run:
        pass
    assert ahead.passes == before
    assert len(heard) > 0


def test_an_interrupt_behind_passes_ahead_loses_nothing(ahead: Ahead) -> None:
    """They have been computed when the interrupt is heard, and their number was not handed on."""
    pair = routed(own_models())
    want = pair.generate(PROMPTS)
    run = quiet_run(pair, PROMPTS)
    interrupted = 0
    native = PagedEngine.write_ahead

    def write_ahead(engine: PagedEngine, *arguments: Any) -> None:
        nonlocal interrupted
        native(engine, *arguments)
        interrupted += 1
        raise KeyboardInterrupt

    results: dict[int, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PagedEngine, "write_ahead", write_ahead)
        while run.sequences:
            try:
                events = run.step()
            except KeyboardInterrupt:
                continue
            results |= {event.sequence: event.result for event in events if event.result}
    assert interrupted > 3
    assert ahead.passes > 0
    found = [said(results[index]) for index in range(len(PROMPTS))]
    assert found == [said(result) for result in want]
