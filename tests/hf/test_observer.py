"""The observer under plain `generate()`: against float64, and against the router."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glimprouter as gr
import hf_pairs
from glimprouter.hf import GlimpseObserver, PagedCache, RoutedModel
from hf_pairs import DOT_BLANK_LINE, END_THINK, EOS, NEWLINE, THINK, TOKENIZER

NEW = 60
BOUNDARY = gr.StepBoundary.from_tokenizer(TOKENIZER)


def batch(lengths: tuple[int, ...] = (20, 3, 11)) -> dict[str, torch.Tensor]:
    rows = hf_pairs.raw_prompts(lengths)
    width = max(lengths)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def observed(model: Any, observer: GlimpseObserver, **options: Any) -> torch.Tensor:
    """Runs `generate` with the observer; the same as without it."""
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    inputs = options.pop("inputs", batch())
    torch.manual_seed(3)
    want = model.generate(**inputs, **options)
    torch.manual_seed(3)
    got: torch.Tensor = model.generate(**inputs, **options, logits_processor=[observer])
    assert torch.equal(got, want)
    observer.finish(got)
    return got


def float64_entropy(model: Any, ids: list[int]) -> float:
    """Of the next token's distribution, all in float64."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1].double()
    p = torch.softmax(logits, -1)
    return float(-(p[p > 0] * p[p > 0].log()).sum())


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "temperature": 0.4, "top_k": 5, "top_p": 0.8}],
    ids=["greedy", "sampled"],
)
def test_entropies_against_float64(family: str, options: dict[str, Any]) -> None:
    """Of raw logits, whatever the warpers do; padded rows; every token and the first of steps."""
    model = hf_pairs.random_model(family, 3, 7)
    first, every = GlimpseObserver(TOKENIZER), GlimpseObserver(BOUNDARY, every_token=True)
    for observer in (first, every):
        tokens = observed(model, observer, **options)
    checked = 0
    for row, prompt in enumerate(hf_pairs.raw_prompts((20, 3, 11))):
        written = tokens[row, 20:].tolist()
        values = every.token_entropies(row)
        assert len(values) == NEW
        for index in range(0, NEW, 7):
            want = float64_entropy(model, prompt + written[:index])
            assert values[index] == pytest.approx(want, abs=2e-4)
        assert first.glimpses(row) == every.glimpses(row)
        for seen in first.glimpses(row):
            checked += 1
            assert seen.token_id == written[seen.token_index]
            assert seen.entropy == values[seen.token_index]
            assert seen.route == ("large" if seen.entropy > 1.0 else "small")
    assert checked > 10


@pytest.mark.parametrize("family", hf_pairs.FAMILIES)
def test_the_steps_and_glimpses_of_the_router(family: str) -> None:
    """A routed run that keeps every step with the small model glimpses the same tokens."""
    pair = hf_pairs.random_pair(family)
    config = gr.RouterConfig(
        threshold=math.inf,
        temperature=0.0,
        repetition_guard=False,
        max_step_tokens=10_000,
        max_think_tokens=NEW,
        max_answer_tokens=0,
    )
    prompts = hf_pairs.raw_prompts((20, 3, 11))
    routed = RoutedModel(pair.small, pair.large, TOKENIZER, config, engine="gather")
    observer = GlimpseObserver(TOKENIZER, threshold=pair.threshold)
    observed(pair.small, observer)
    assert observer.summary().glimpses > 8
    for row, result in enumerate(routed.generate(prompts)):
        trace = observer.trace(row)
        want = [step for step in result.trace.steps if step.entropy is not None]
        assert len(trace.steps) == len(want)
        for step, other in zip(trace.steps[:-1], want[:-1], strict=True):
            assert (step.text, step.num_tokens) == (other.text, other.num_tokens)
            assert step.end_reason == other.end_reason == "delimiter"
        for step, other in zip(trace.steps, want, strict=True):
            assert step.entropy == pytest.approx(other.entropy, abs=1e-4)
        assert trace.total_tokens == NEW
        assert trace.end_reason == "interrupted"
        models = {step.model for step in trace.steps}
        assert models <= {"small", "large"}


def scripted(observer: GlimpseObserver, rows: list[list[int]]) -> None:
    """The calls of a `generate` that writes these tokens; row logits say where they stand."""
    prompt = torch.tensor([[1, 2]] * len(rows))
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    for index in range(width):
        ids = torch.cat([prompt, tokens[:, :index]], 1)
        # The entropy rises with the position: ln(1 + index), as so many logits are equal.
        scores = torch.full((len(rows), 40), -torch.inf)
        scores[:, : index + 1] = 0.0
        assert observer(ids, scores) is scores
    observer.finish(torch.cat([prompt, tokens], 1))


def test_what_begins_and_ends_a_step() -> None:
    """White space and think-start come before a step; end of thinking alone is none."""
    a, b = TOKENIZER.encode("ab", add_special_tokens=False)
    rows = [
        [THINK, NEWLINE, a, b, DOT_BLANK_LINE, NEWLINE, b, DOT_BLANK_LINE, END_THINK, a, EOS, a],
        [a, NEWLINE, NEWLINE, NEWLINE, a, EOS],
        [DOT_BLANK_LINE, a, b, END_THINK, NEWLINE, NEWLINE, a, b],
        [EOS, a, DOT_BLANK_LINE],
    ]
    observer = GlimpseObserver(TOKENIZER, threshold=math.log(4), every_token=True)
    scripted(observer, rows)
    places = [[seen.token_index for seen in observer.glimpses(row)] for row in range(4)]
    assert places == [[2, 6], [0, 4], [0, 1], []]
    assert [seen.route for seen in observer.glimpses(0)] == ["small", "large"]
    assert [seen.route for seen in observer.glimpses(1)] == ["small", "large"]
    for row in range(4):
        for seen in observer.glimpses(row):
            assert seen.entropy == pytest.approx(math.log(1 + seen.token_index), abs=1e-5)
    traces = [observer.trace(row) for row in range(4)]
    assert [t.end_reason for t in traces] == ["eos", "eos", "interrupted", "eos"]
    assert [t.total_tokens for t in traces] == [11, 6, 12, 1]
    assert traces[0].answer == "a"
    # White space behind a boundary belongs to the next step, also where the run goes on.
    assert [[s.num_tokens for s in t.steps] for t in traces] == [[5, 3], [3, 3], [1, 3], []]
    assert [[s.end_reason for s in t.steps] for t in traces] == [
        ["delimiter", "delimiter"],
        ["delimiter", "eos"],
        ["delimiter", "think_end"],
        [],
    ]
    assert [len(observer.token_entropies(row)) for row in range(4)] == [11, 6, 12, 1]


def test_summary() -> None:
    a = TOKENIZER.encode("a", add_special_tokens=False)[0]
    observer = GlimpseObserver(TOKENIZER, threshold=0.0)
    assert math.isnan(observer.summary().mean)
    scripted(observer, [[DOT_BLANK_LINE] * 4 + [a]])
    values = np.log(np.arange(1, 6))
    np.testing.assert_allclose(observer.entropies(), values, atol=1e-5)
    summary = observer.summary()
    assert summary.glimpses == 5
    assert summary.large_share == 0.8
    assert summary.mean == pytest.approx(values.mean(), abs=1e-5)
    np.testing.assert_allclose(summary.quartiles, values[1:4], atol=1e-5)
    inclusive = GlimpseObserver(TOKENIZER, threshold=0.0, comparison=">=")
    scripted(inclusive, [[DOT_BLANK_LINE] * 4 + [a]])
    assert inclusive.summary().large_share == 1.0


def test_trace_is_a_file_like_any_other(tmp_path: Path) -> None:
    observer = GlimpseObserver(TOKENIZER)
    observed(hf_pairs.random_model("qwen3", 3, 7), observer)
    observer.trace(1).to_jsonl(tmp_path / "trace.jsonl")
    assert gr.Trace.from_jsonl(tmp_path / "trace.jsonl") == observer.trace(1)


def test_entropy_of_the_largest() -> None:
    model = hf_pairs.random_model("llama", 3, 7)
    observer = GlimpseObserver(BOUNDARY, entropy_top_k=20)
    tokens = observed(model, observer)
    seen = observer.glimpses(1)[1]
    prompt = hf_pairs.raw_prompts((20, 3, 11))[1]
    ids = prompt + tokens[1, 20 : 20 + seen.token_index].tolist()
    with torch.inference_mode():
        top = model(torch.tensor([ids])).logits[0, -1].double().topk(20).values
    p = torch.softmax(top, -1)
    assert seen.entropy == pytest.approx(float(-(p * p.log()).sum()), abs=2e-4)


def test_own_processors_of_generate_come_before() -> None:
    """As documented: penalties change what is seen, temperature and the like do not."""
    model = hf_pairs.random_model("qwen3", 3, 7)
    seen = {}
    for name, options in {
        "plain": {},
        "warped": {"do_sample": True, "temperature": 0.3, "top_k": 3, "min_p": 0.2},
        "penalty": {"repetition_penalty": 3.0},
    }.items():
        observer = GlimpseObserver(BOUNDARY, every_token=True)
        observed(model, observer, max_new_tokens=1, **options)
        seen[name] = [observer.token_entropies(row) for row in range(3)]
    assert seen["warped"] == seen["plain"]
    assert seen["penalty"] != seen["plain"]


def test_with_pages() -> None:
    model = copy.deepcopy(hf_pairs.random_model("llama", 3, 7))
    want = GlimpseObserver(BOUNDARY)
    observed(model, want)
    model.set_attn_implementation("glimprouter")
    got = GlimpseObserver(BOUNDARY)
    ids = model.generate(
        **batch(),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        logits_processor=[got],
        past_key_values=PagedCache(model),
    )
    got.finish(ids)
    np.testing.assert_allclose(got.entropies(), want.entropies(), atol=1e-4)


@pytest.mark.parametrize("option", ["beams", "assisted", "again"])
def test_what_is_no_continuation(option: str) -> None:
    model = hf_pairs.random_model("qwen3", 3, 7)
    observer = GlimpseObserver(BOUNDARY)
    inputs = batch((20,))
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    if option == "beams":
        options["num_beams"] = 4
    elif option == "assisted":
        inputs["input_ids"][0, 10:] = inputs["input_ids"][0, :10]
        options["prompt_lookup_num_tokens"] = 4
    else:
        model.generate(**inputs, **options, logits_processor=[observer])
    with pytest.raises(ValueError, match=r"do not continue.*reset\(\).*beams and assisted"):
        model.generate(**inputs, **options, logits_processor=[observer])
    observer.reset()
    observed(model, observer)
    assert observer.num_sequences == 3


def test_bad_use() -> None:
    with pytest.raises(ValueError, match="threshold must lie in"):
        GlimpseObserver(BOUNDARY, threshold=-1.0)
    with pytest.raises(ValueError, match="entropy_top_k must lie in"):
        GlimpseObserver(BOUNDARY, entropy_top_k=0)
    observer = GlimpseObserver(BOUNDARY)
    with pytest.raises(ValueError, match="nothing was observed"):
        observer.finish(torch.zeros((1, 2), dtype=torch.long))
    ids = torch.tensor([[1, 2], [3, 4]])
    scores = torch.zeros((2, 50))
    scores[1, 3] = torch.nan
    with pytest.raises(RuntimeError, match=r"row 1: .*fault \(nan\)"):
        observer(ids, scores)
    observer.reset()
    observer(ids, torch.zeros((2, 50)))
    with pytest.raises(IndexError):
        observer.glimpses(2)
    with pytest.raises(ValueError, match="every_token=True"):
        observer.token_entropies(0)
    with pytest.raises(ValueError, match=r"text needs a tokenizer"):
        observer.trace(0)
    with pytest.raises(ValueError, match="do not continue"):
        observer.finish(ids)
