"""Asides in runs that are stopped, short of memory, counted or spoiled; and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

import glimprouter as gr
import hf_pairs
import hf_translated
from glimprouter.hf import RoutedModel
from glimprouter.hf.engine.paged import PagedEngine
from glimprouter.policies import Aside, Glimpse, Judgement, Policy, SpecReason, WrittenStep
from hf_asides import Graded
from hf_rewriting import check_same
from hf_runs import finish, finish_with_failures, rewound, routed, sector_bytes, written
from hf_watch import poisoned_at, watched

pytestmark = pytest.mark.both_engines
PAIRS = ("qwen3", "two tokenizers")
THRESHOLDS = {"qwen3": 3.6, "two tokenizers": 4.5}  # about the median grade


def mixed(name: str, **options: Any) -> tuple[RoutedModel, list[Any]]:
    """A pair of whose steps some are rewritten."""
    model, prompts = routed(name, **options)
    model.policy = policy = Graded(4.5, forced="keep")
    model.generate(prompts[:3])
    grades = sorted(policy.grades().values())
    model.policy = Graded(grades[len(grades) // 2] + 1e-3)
    return model, prompts


@pytest.mark.parametrize("name", PAIRS)
def test_forked_rewound_and_saved(name: str) -> None:
    model, prompts = mixed(name)
    result = model.generate(prompts[:1])[0]
    want = written(result)
    assert {step.model for step in result.trace.steps} == {"small", "large"}
    for passes in (4, 11, 18):
        run = model.stream(prompts[:1])
        for _ in range(passes):
            run.step()
        twin, saved = run.fork(0, substream=0), run.save(0)
        rewound(run, 0, min(7, len(run.generated(0))))
        results = finish(run)
        assert [written(results[0]), written(results[twin])] == [want, want]
        loaded = finish(model.resume([saved]))[0]
        assert written(loaded) == want
        for other in (results[twin], loaded):
            assert other.counts["large"].asides == result.counts["large"].asides
            scores = [step.score for step in other.trace.steps]
            assert scores == pytest.approx([step.score for step in result.trace.steps], abs=1e-3)


@pytest.mark.parametrize("name", PAIRS)
def test_passes_that_fail_are_repeated(name: str) -> None:
    """Passes of the large model break off, asides among them: nothing is lost."""
    model, prompts = mixed(name)
    want = [written(result) for result in model.generate(prompts)]
    layer = model.large.model.layers[-1]
    results = finish_with_failures(model, prompts, layer)
    assert [written(results[index]) for index in range(len(prompts))] == want


@pytest.mark.parametrize("place", ["begin_aside", "forward", "end_aside", "groups"])
@pytest.mark.parametrize("behind", [False, True])
def test_interrupts_within_an_aside(
    place: str, behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = mixed("qwen3")
    want = [written(result) for result in model.generate(prompts)]
    run = model.stream(prompts)
    engine = run._sequences.engine
    run.step()
    asides: list[int] = []
    original, begin = getattr(engine, place), engine.begin_aside

    def begun(*arguments: Any) -> Any:
        asides.append(1)
        return begin(*arguments)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if place != "begin_aside" and not asides:
            return original(*arguments, **named)
        monkeypatch.undo()
        if behind:
            original(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "begin_aside", begun)
    monkeypatch.setattr(engine, place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run)
    results = finish(run)
    assert [written(results[index]) for index in range(len(prompts))] == want


def test_a_policy_that_raises_has_its_reading_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The large model is not asked twice; the sequence may be cancelled, too."""
    model, prompts = mixed("qwen3")
    want = model.generate(prompts)
    threshold = model.policy.threshold  # type: ignore[union-attr]

    class Failing(SpecReason):
        left = 3

        def after(self, step: WrittenStep) -> Any:
            self.left -= 1
            if self.left == 0 or (step.substream == 2 and self.left > -20):
                raise KeyError("no rule")
            return super().after(step)

    model.policy = Failing(threshold, expected=True)
    run, results = model.stream(prompts), {}
    for _ in range(30):
        try:
            results |= finish(run)
            break
        except KeyError:
            continue
    assert [written(results[index]) for index in range(len(prompts))] == [*map(written, want)]
    for index, result in enumerate(want):
        assert results[index].counts["large"].asides == result.counts["large"].asides


@pytest.mark.parametrize("name", PAIRS)
def test_short_of_memory(
    name: str, pages_of_16: None, monkeypatch: pytest.MonkeyPatch, engine_under_test: str
) -> None:
    """Sequences are preempted within asides, too, and write what they would have."""
    if engine_under_test != "paged":
        pytest.skip("gathering takes the memory that it needs")
    model, prompts = mixed(name)
    want = model.generate(prompts)
    preempted: list[bool] = []
    original = PagedEngine.preempt

    def counted(self: PagedEngine, record: Any) -> None:
        preempted.append(bool(self._asking))
        original(self, record)

    monkeypatch.setattr(PagedEngine, "preempt", counted)
    forward = PagedEngine.forward

    def noted(self: PagedEngine, *arguments: Any) -> Any:
        self._asking = bool(self._aside_rows)  # type: ignore[attr-defined]
        return forward(self, *arguments)

    monkeypatch.setattr(PagedEngine, "forward", noted)
    for sectors in (14, 15, 17, 20):
        model.kv_memory_bytes = sectors * sector_bytes(model)
        check_same(model.generate(prompts), want)
    assert sum(preempted) > 2


def test_every_token_of_the_large_model_is_counted() -> None:
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(max_think_tokens=50)
    for forced in ("keep", "rewrite"):
        model.policy = Graded(forced=forced)  # type: ignore[arg-type]
        with watched(pair.large) as seen:
            results = model.generate(pair.prompts)
        counts = [result.counts["large"] for result in results]
        told = sum(own.tokens + own.aside_tokens for own in counts)
        told += sum(len(prompt) - 1 for prompt in pair.prompts)  # the last token is of no use
        rewritten = sum(step.rewritten > 0 for r in results for step in r.trace.steps)
        assert told <= len(seen) <= told + rewritten
        assert forced == "rewrite" or len(seen) == told
        questions = sum(own.asides for own in counts) * len(question_of(model))
        dropped = sum(step.rewritten for r in results for step in r.trace.steps)
        extra = sum(own.aside_tokens for own in counts) - questions
        assert 0 <= extra <= dropped + rewritten
        assert extra > 0 or forced == "keep"


def question_of(model: RoutedModel) -> list[int]:
    assert model.policy is not None
    assert model.policy.aside is not None
    ids: list[int] = model.large_tokenizer.encode(
        model.policy.aside.question, add_special_tokens=False
    )
    return ids


class TokensRead(Policy):
    """Keeps what the large model would have written about as likely as the small one."""

    aside = Aside(tokens=True)

    def __init__(self) -> None:
        self.steps: list[WrittenStep] = []

    def before(self, glimpse: Glimpse) -> Any:
        return "large" if glimpse.step % 3 == 1 else "small"

    def after(self, step: WrittenStep) -> Any:
        self.steps.append(step)
        if step.aside is None:
            return "keep"
        mean = step.aside.mean_logprob
        return Judgement("keep" if mean > -9 else "rewrite", mean)


@pytest.mark.parametrize("drafts", [0, 3])
def test_log_probabilities_of_the_steps_tokens(drafts: int) -> None:
    """Against a pass over the whole text, in a batch."""
    import torch

    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(drafts=drafts, temperature=0.8, max_think_tokens=50)
    model.policy = policy = TokensRead()
    results = model.generate(pair.prompts)
    asked = [step for step in policy.steps if step.aside is not None]
    assert len(asked) > 10
    for step in asked:
        assert step.aside is not None
        before = [
            *pair.prompts[step.substream],
            *results[step.substream].token_ids[: step.position],
        ]
        ids = torch.tensor([[*before, *step.token_ids]])
        with torch.inference_mode():
            logits = pair.large(ids).logits[0, len(before) - 1 : -1, : hf_pairs.VOCABULARY]
        values = logits.double().log_softmax(-1)
        want = values[torch.arange(len(values)), torch.tensor(step.token_ids)]
        assert step.aside.logprobs == pytest.approx(want.tolist(), abs=2e-3)
    assert {step.model for r in results for step in r.trace.steps} == {"small", "large"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("on_invalid", ["raise", "end"])
def test_logits_with_a_fault_are_no_reading(value: float, on_invalid: str) -> None:
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(on_invalid=on_invalid)
    model.policy = Graded(forced="keep")
    prompt = pair.prompts[:1]
    step = model.generate(prompt)[0].trace.steps[0]
    length = len(prompt[0]) + step.num_tokens + len(question_of(model))
    run = model.stream(prompt)
    with poisoned_at(pair.large, length, value):
        if on_invalid == "raise":
            with pytest.raises(RuntimeError, match="gave logits with a fault behind a step"):
                list(run)
        result = finish(run)[0]
    assert result.trace.end_reason == "error"
    assert "behind a step that a policy asks about" in str(result.trace.error)


def test_a_question_that_leaves_no_room_is_refused() -> None:
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(max_think_tokens=1900, max_answer_tokens=8)
    model.policy = Graded()
    model.generate(pair.prompts[:1], max_think_tokens=9)
    with pytest.raises(ValueError, match="reserved for the policy's question"):
        model.generate(pair.prompts[:1])


def test_text_that_grows_beyond_the_context_ends() -> None:
    """In the tokens of the other model: as where it is too long without a question."""
    model = hf_translated.routed("gpt2", "qwen", context=400, max_think_tokens=60)
    model.policy = Graded(forced="keep")
    room = 400 - len(question_of(model))
    prompt = gr.hf.EncodedPrompt(None, [5] * 20, [9] * (room - 62))
    result = model.generate([prompt])[0]
    if result.trace.error is not None:
        assert "the question of the policy" in result.trace.error


def test_pairs_that_cannot_be_asked_are_refused() -> None:
    pair = hf_pairs.pair_of("hybrid")
    model = pair.routed()
    model.policy = SpecReason()
    with pytest.raises(ValueError, match=r"the large model (keeps a state|has a cache).* be cut"):
        model.generate(pair.prompts[:1])
    model, prompts = routed("two tokenizers")
    model.policy = TokensRead()
    with pytest.raises(ValueError, match="the tokenizers of this pair differ"):
        model.generate(prompts[:1])


BAD_ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "two tokens": ({"digits": ["10", *"123456789"]}, "'10' .* must be exactly one token"),
    "merged": ({"question": "Grade: t", "digits": ["h", *"123456789"]}, "'h' .* exactly one"),
    "id out of range": ({"digits": range(300, 310)}, "names the token 300"),
    "question out of range": ({"question": [5, 4000]}, "names the token 4000"),
    "twice": ({"digits": ["0", *range(15, 24)]}, "must be distinct tokens"),
}


@pytest.mark.parametrize(("options", "message"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_answers_that_are_no_tokens(options: dict[str, Any], message: str) -> None:
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed()
    model.policy = SpecReason(**options)
    with pytest.raises(ValueError, match=message):
        model.generate(pair.prompts[:1])
    with pytest.raises(ValueError, match=message):
        gr.hf.RoutedModel(pair.small, pair.large, pair.tokenizer, policy=SpecReason(**options))
