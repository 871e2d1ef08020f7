"""The small model drafts what the large one writes: the text stays, and passes are saved."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from typing import Any

import pytest
import torch

import hf_pairs
from glimprouter.hf import RoutedModel
from glimprouter.hf.attention import layers
from glimprouter.hf.engine import pass_groups
from glimprouter.hf.engine.base import Engine
from glimprouter.hf.run.passes import ModelPasses
from glimprouter.hf.run.sequences import RunSequences
from glimprouter.hf.sequence.drafts import Drafts
from hf_pairs import TOKENIZER, Pair
from hf_watch import calling, poisoned, poisoned_at, watched

pytestmark = pytest.mark.both_engines

SAMPLED = {"temperature": 0.9, "top_p": 0.95}
ROUTES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": SAMPLED,
    "large alone": {"route": "large", "temperature": 0.9},
    "first steps large": {"first_steps_large": 3, "repetition_guard": True},
    "small answers": {"answer_model": "small"},
    "short": {"max_think_tokens": 17, "max_step_tokens": 5, "max_answer_tokens": 3},
}


@cache
def agreeing_pair() -> Pair:
    """A large model that is the small one with some noise: drafts hold often, and not always."""
    pair = hf_pairs.random_pair("qwen3")
    large = copy.deepcopy(pair.small)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in large.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.08 * parameter.std() * noise if parameter.dim() > 1 else 0.0
    return dataclasses.replace(pair, large=large.eval())


def outcome(results: list[Any]) -> list[Any]:
    """Everything of a result but times, and what drafts did."""
    return [
        (
            result.token_ids,
            result.text,
            result.trace.answer,
            result.trace.end_reason,
            [(s.model, s.text, s.num_tokens, s.end_reason) for s in result.trace.steps],
        )
        for result in results
    ]


def collect(run: Any, results: dict[int, Any]) -> None:
    """Goes on to the end, or to an interrupt; what has ended is in ``results``."""
    for event in run:
        if event.result is not None:
            results[event.sequence] = event.result


def counted(results: list[Any], model: str, field: str) -> int:
    return sum(getattr(result.counts[model], field) for result in results)


@pytest.mark.parametrize("options", ROUTES.values(), ids=ROUTES)
def test_the_text_is_what_it_is_without_drafts(options: dict[str, Any]) -> None:
    pair = agreeing_pair()
    want = pair.routed(**options).generate(pair.prompts, seeds=3)
    assert counted(want, "small", "drafted") == 0
    for drafts in (1, 4, 16, "auto"):
        results = pair.routed(drafts=drafts, **options).generate(pair.prompts, seeds=3)
        assert outcome(results) == outcome(want), drafts
        drafted = counted(results, "small", "drafted")
        accepted = counted(results, "small", "accepted")
        if drafts != "auto":  # which may find that it does not pay
            assert 0 < accepted < drafted, drafts
            assert counted(results, "large", "passes") < counted(want, "large", "passes"), drafts
        assert counted(results, "large", "drafted") == 0


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_models_that_never_agree(family: str) -> None:
    pair = hf_pairs.random_pair(family)
    want = pair.routed(**SAMPLED).generate(pair.prompts, seeds=1)
    got = pair.routed(drafts=4, **SAMPLED).generate(pair.prompts, seeds=1)
    assert outcome(got) == outcome(want)
    assert counted(got, "small", "drafted") > 2 * counted(got, "small", "accepted")


@pytest.mark.both_engines("paged")
@pytest.mark.usefixtures("pages_of_16")
def test_as_many_sequences_as_there_may_be_write_what_each_writes_alone() -> None:
    pair, most = agreeing_pair(), 256
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(2, 16, (most,), generator=generator).tolist()
    prompts = [torch.randint(40, 90, (n,), generator=generator).tolist() for n in lengths]
    few = {"max_think_tokens": 6, "max_step_tokens": 3, "max_answer_tokens": 2}
    run = pair.routed(max_sequences=most, drafts="auto", **few).stream(prompts)
    results: dict[int, Any] = {}
    running = 0
    for event in run:
        running = max(running, run.usage().running)
        if event.result is not None:
            results[event.sequence] = event.result
    assert running == most
    got = [results[index] for index in range(most)]
    assert counted(got, "small", "accepted") > 0
    alone = pair.routed(max_sequences=1, **few)  # one after the other, and without drafts
    assert outcome(got) == outcome(alone.generate(prompts))
    written = {tuple(result.token_ids) for result in got}
    assert len(written) > most // 2  # each has a text of its own


def test_the_trained_pair_needs_few_passes_of_the_large_model() -> None:
    pair = hf_pairs.trained_pair()
    options = {"max_think_tokens": 120, "max_step_tokens": 60, "max_answer_tokens": 30}
    want = pair.routed(**options).generate(pair.prompts)
    got = pair.routed(drafts=16, **options).generate(pair.prompts)
    assert outcome(got) == outcome(want)
    steps = sum(step.model == "large" for result in got for step in result.trace.steps)
    assert counted(got, "large", "passes") <= 4 * (steps + len(got))  # an answer is one more
    assert counted(want, "large", "passes") > 8 * (steps + len(got))


def test_the_trace_says_which_tokens_were_drafts() -> None:
    pair = agreeing_pair()
    results = pair.routed(drafts=4).generate(pair.prompts)
    for result in results:
        trace = result.trace
        for step in trace.steps:
            assert sorted(set(step.drafted)) == step.drafted
            assert all(place < step.num_tokens for place in step.drafted)
            assert step.model == "large" or not step.drafted
        assert all(place < trace.answer_tokens for place in trace.answer_drafted)
        named = sum(len(step.drafted) for step in trace.steps) + len(trace.answer_drafted)
        assert named == result.counts["small"].accepted
    assert any(result.trace.answer_drafted for result in results)


def test_no_token_is_computed_twice_but_for_drafts_that_did_not_hold() -> None:
    pair = agreeing_pair()
    for options in ({}, {"route": "large"}, {"max_think_tokens": 20}):
        with watched(pair.small) as small, watched(pair.large) as large:
            results = pair.routed(drafts=4, **options).generate(pair.prompts[:1])
        (result,) = results
        rejected = result.counts["small"].drafted - result.counts["small"].accepted
        assert rejected > 0
        for computed in (small, large):
            positions = {position for _, position, _ in computed}
            assert positions == set(range(len(positions)))
            assert len(computed) - len(positions) <= rejected


def test_passes_with_a_number_of_drafts_do_not_follow_the_clock() -> None:
    pair = agreeing_pair()
    orders = []
    for _ in range(2):
        with watched(pair.small) as small, watched(pair.large) as large:
            pair.routed(drafts=8, **SAMPLED).generate(pair.prompts, seeds=2)
        orders.append((small, large))
    assert orders[0] == orders[1]


def test_run_calls_give_drafts_up() -> None:
    """Forked, rewound, saved in the middle of drafts, a sequence writes what it writes."""
    pair = agreeing_pair()
    model = pair.routed(drafts=8, **SAMPLED)
    want = outcome(pair.routed(**SAMPLED).generate(pair.prompts[:2], seeds=6))
    run = model.stream(pair.prompts[:2], seeds=6)
    results: dict[int, Any] = {}
    saved, calls = [], 0
    for event in run:
        if event.result is not None:
            results[event.sequence] = event.result
        if event.kind not in ("token", "route") or event.sequence != 0 or calls == 12:
            continue
        calls += 1
        if calls % 3 == 0:
            run.rewind(0, min(2, len(run.generated(0))))
        elif calls % 3 == 1:
            run.cancel(run.fork(0, substream=0))
        else:
            saved.append(run.save(0))
    assert outcome([results[0], results[1]]) == want
    again = model.resume(saved[-1:])
    (result,) = [event.result for event in again if event.result is not None]
    assert outcome([result]) == want[:1]
    assert result.counts["small"].drafted > 0


def test_a_fault_in_a_verified_row_leaves_the_tokens_before_it() -> None:
    pair = agreeing_pair()
    prompts = pair.prompts[:1]
    want = pair.routed(route="large").generate(prompts)[0].token_ids
    faulty = len(prompts[0]) + 9
    model = pair.routed(drafts=4, route="large", on_invalid="end")
    with poisoned_at(pair.large, faulty, torch.nan):
        (result,) = model.generate(prompts)
    assert "fault (nan)" in result.trace.error
    assert result.token_ids == want[:9]
    model = pair.routed(drafts=4, route="large")
    with (
        poisoned_at(pair.large, faulty, torch.nan),
        pytest.raises(RuntimeError, match=r"the large model gave logits with a fault \(nan\)"),
    ):
        model.generate(prompts)


def test_a_small_model_that_fails_while_it_drafts_changes_nothing() -> None:
    pair = agreeing_pair()
    want = pair.routed(route="large").generate(pair.prompts)
    with poisoned(pair.small, 0, 30, torch.nan):
        got = pair.routed(drafts=4, route="large").generate(pair.prompts)
    assert outcome(got) == outcome(want)


def test_an_interrupt_in_any_pass_loses_nothing() -> None:
    pair = agreeing_pair()
    want = outcome(pair.routed().generate(pair.prompts[:2]))
    model = pair.routed(drafts=4)
    for name in ("small", "large"):
        for failing in (1, 4, 7):

            def interrupt(call: int, failing: int = failing) -> None:
                if call == failing:
                    raise KeyboardInterrupt

            with calling(pair.model(name), interrupt):
                run = model.stream(pair.prompts[:2])
                results: dict[int, Any] = {}
                with pytest.raises(KeyboardInterrupt):
                    collect(run, results)
                collect(run, results)
            assert outcome([results[0], results[1]]) == want


@pytest.mark.parametrize(
    "place", ["before the draft is noted", "before the draft", "before it is told"]
)
def test_an_interrupt_anywhere_loses_nothing_without_a_word(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between what the router, the pages and the records do, which belongs together."""
    owner, name = {
        "before the draft is noted": (Drafts, "add"),
        "before the draft": (Engine, "draft"),
        "before it is told": (ModelPasses, "hear"),
    }[place]
    pair = agreeing_pair()
    want = outcome(pair.routed(**SAMPLED).generate(pair.prompts[:3], seeds=9))
    original = getattr(owner, name)
    for failing in (0, 1, 3, 10, 25):
        calls = 0

        def interrupted(*arguments: Any, failing: int = failing) -> Any:
            nonlocal calls
            calls += 1
            if calls == failing + 1:
                raise KeyboardInterrupt
            return original(*arguments)

        results: dict[int, Any] = {}
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            run = pair.routed(drafts=4, **SAMPLED).stream(pair.prompts[:3], seeds=9)
            with pytest.raises(KeyboardInterrupt):
                collect(run, results)
            collect(run, results)
        assert outcome([results[index] for index in range(3)]) == want, failing


def test_passes_of_a_plan_whose_drafts_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of many passes is void once a call between two events has taken drafts back."""
    monkeypatch.setattr(pass_groups, "_MOST_TOKENS", 1)
    pair = agreeing_pair()
    want = outcome(pair.routed(route="large").generate(pair.prompts))
    run = pair.routed(drafts=4, route="large").stream(pair.prompts)
    results: dict[int, Any] = {}
    for event in run:
        if event.result is not None:
            results[event.sequence] = event.result
        for sequence in run.sequences[:2]:
            if len(run.generated(sequence)) > 3:
                run.save(sequence)
                with pytest.raises(ValueError, match="cannot drop"):
                    run.rewind(sequence, 10_000)
    assert outcome([results[index] for index in range(len(want))]) == want


def test_a_trace_on_the_way_stays_as_it_is() -> None:
    pair = agreeing_pair()
    run = pair.routed(drafts=4).stream(pair.prompts[:1])
    taken = []
    for _ in run:
        trace = run.trace(0)
        taken.append((trace, copy.deepcopy(trace)))
    assert all(trace == then for trace, then in taken)
    assert any(step.drafted for trace, _ in taken for step in trace.steps)


@pytest.mark.both_engines("paged")  # what is gathered takes the memory that it needs
@pytest.mark.usefixtures("pages_of_16")
def test_nobody_is_preempted_for_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = agreeing_pair()
    options = {"route": "large", "max_think_tokens": 100, "max_step_tokens": 100}
    config = pair.routed(**options).config
    want = outcome(pair.routed(**options).generate(pair.prompts))
    layout = [layers.kv_layout(model) for model in (pair.small, pair.large)]
    most = max(map(len, pair.prompts)) + 100 + 8 + 3
    pages = [-(-most // own.page_size) * own.page_bytes for own in layout]
    given_up: list[bool] = []
    drop, preempt = RunSequences.drop_drafts, RunSequences.preempt_youngest

    def watched_drop(sequences: RunSequences) -> bool:
        given_up.append(drop(sequences))
        return given_up[-1]

    def watched_preempt(sequences: RunSequences, *spared: Any) -> None:
        assert not given_up[-1], "drafts come first"
        assert not any(len(record.drafts) for record in sequences._active.values())
        preempt(sequences, *spared)

    monkeypatch.setattr(RunSequences, "drop_drafts", watched_drop)
    monkeypatch.setattr(RunSequences, "preempt_youngest", watched_preempt)
    model = RoutedModel(
        pair.small,
        pair.large,
        TOKENIZER,
        config,
        engine="paged",
        kv_memory_bytes=int(1.1 * sum(pages)),
        drafts=16,
    )
    assert outcome(model.generate(pair.prompts)) == want
    assert {True, False} <= set(given_up), "memory must run short, with drafts and without"


@pytest.mark.parametrize(
    ("drafts", "error", "message"),
    [
        (17, ValueError, "got 17"),
        (-1, ValueError, "got -1"),
        ("many", ValueError, "got 'many'"),
        (2.5, TypeError, "got 2.5"),
        (True, TypeError, "got True"),
        (None, TypeError, "got None"),
    ],
)
def test_other_options_are_refused(drafts: Any, error: type[Exception], message: str) -> None:
    pair = agreeing_pair()
    wanted = r'drafts must be "auto" or an integer in \[0, 16\], '
    with pytest.raises(error, match=wanted + message):
        pair.routed(drafts=drafts)


def test_models_with_states_do_not_draft() -> None:
    pair = hf_pairs.random_pair("hybrid")
    with pytest.raises(ValueError, match="drafts=2 needs models that can drop what they have comp"):
        pair.routed(drafts=2)
    (result,) = pair.routed(drafts="auto").generate(pair.prompts[:1])
    assert result.counts["small"].drafted == 0
