"""What is checked of each family of models: against generate(), and against full passes."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import torch

import glimprouter as gr
import hf_pairs
from families import build
from glimprouter.hf import Result, RoutedModel
from reference.philox import uniform_double
from reference.selection import Filters, InverseCdf

PROMPTS = hf_pairs.raw_prompts((5, 23, 12))
TOKENS = 80
MARGIN = 1e-3  # between the two largest logits; below, rounding may choose
_ANSWER = 8


def routed(small: Any, large: Any, **config: Any) -> tuple[RoutedModel, list[str]]:
    """A greedy pair without markers of thinking, and its warnings."""
    options = {
        "temperature": 0.0,
        "repetition_guard": False,
        "max_step_tokens": 9,
        "max_think_tokens": TOKENS - _ANSWER,
        "max_answer_tokens": _ANSWER,
        **config,
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = RoutedModel(
            small,
            large,
            hf_pairs.TOKENIZER,
            gr.RouterConfig(**options),
            thinking=None,
            eos_token_ids=[],
        )
    return model, [str(warning.message) for warning in caught]


@torch.inference_mode()
def generated(model: Any, prompt: list[int]) -> list[int]:
    """What transformers writes."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return [int(token) for token in out[0, len(prompt) :]]


def equals_generate(model: Any) -> None:
    """Every prompt alone, and all of them together."""
    pair, _ = routed(model, model, route="small")
    want = [generated(model, prompt) for prompt in PROMPTS]
    alone = [pair.generate([prompt])[0].token_ids for prompt in PROMPTS]
    assert alone == want
    assert [result.token_ids for result in pair.generate(PROMPTS)] == want


def partner(name: str) -> Any:
    """A small model of another family."""
    return build("qwen3" if name != "qwen3" else "llama", seed=5)


def half_routed(name: str, model: Any) -> tuple[RoutedModel, list[Result], float]:
    """The model as the large one beside another family, with about half of the steps."""
    small = partner(name)
    measured, _ = routed(small, model, threshold=float("inf"))
    steps = [step for result in measured.generate(PROMPTS) for step in result.trace.steps]
    values = sorted(step.entropy for step in steps if step.entropy is not None)
    threshold = (values[len(values) // 2] + values[len(values) // 2 - 1]) / 2
    pair, _ = routed(small, model, threshold=threshold)
    return pair, [pair.generate([prompt])[0] for prompt in PROMPTS], threshold


@torch.inference_mode()
def follows_from_full_passes(pair: RoutedModel, results: list[Result], threshold: float) -> int:
    """Every token and decision is what passes without a cache say; the number of hand-offs."""
    handoffs = 0
    for prompt, result in zip(PROMPTS, results, strict=True):
        ids = torch.tensor([[*prompt, *result.token_ids]])
        logits = {
            name: model(ids, use_cache=False).logits[0].double()
            for name, model in (("small", pair.small), ("large", pair.large))
        }
        at = len(prompt) - 1
        writers = [step.model for step in result.trace.steps]
        handoffs += sum(a != b for a, b in pairwise(writers))
        for step in result.trace.steps:
            if step.entropy is not None:
                start = at  # a step may begin with white space, which is not glimpsed
                decided = [entropy_of(logits["small"][start + k]) for k in range(step.num_tokens)]
                nearest = min(decided, key=lambda value: abs(value - step.entropy))
                assert abs(nearest - step.entropy) < 1e-3
                assert step.model == ("large" if step.entropy > threshold else "small")
            for _ in range(step.num_tokens):
                largest = logits[step.model][at].topk(2)
                token = int(ids[0, at + 1])
                certain = largest.values[0] - largest.values[1] > MARGIN
                spaces = not hf_pairs.TOKENIZER.decode([token]).strip()
                assert token == int(largest.indices[0]) or not certain or spaces, (step.index, at)
                at += 1
    return handoffs


SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95}
_SEED = 11
_ROUNDING = 0.01  # of logits, at most: of recurrent layers, whose passes round otherwise


@torch.inference_mode()
def draws_from_full_passes(name: str, model: Any, threshold: float) -> int:
    """Every sampled token is drawn from a full pass by its seed, substream and place; how many."""
    pair, _ = routed(partner(name), model, threshold=threshold, **SAMPLED)
    drawn, wrote = 0, set()
    for prompt in PROMPTS:
        [result] = pair.generate([prompt], _SEED)
        ids = torch.tensor([[*prompt, *result.token_ids]])
        rows = {
            writer: own(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
            for writer, own in (("small", pair.small), ("large", pair.large))
        }
        writers = [step.model for step in result.trace.steps for _ in range(step.num_tokens)]
        writers += ["large"] * (len(result.token_ids) - len(writers))  # the answer
        wrote |= set(writers)
        for place, (writer, token) in enumerate(zip(writers, result.token_ids, strict=True)):
            # White space before a step's first word is the small model's, whoever writes the step.
            spaces = not hf_pairs.TOKENIZER.decode([token]).strip()
            row, may_write = rows[writer][place], {writer, "small"} if spaces else {writer}
            expected = {_drawn(rows[own][place], own, place) for own in may_write}
            drawn += token in expected
            # Where rounding chooses between two tokens, a row that is off by as much has the other.
            nudged = (row + _ROUNDING * torch.randn(row.shape) for _ in range(40))
            assert token in expected or any(_drawn(own, writer, place) == token for own in nudged)
    assert wrote == {"small", "large"}
    return drawn


def _drawn(row: torch.Tensor, writer: str, place: int) -> int:
    draw = uniform_double(_SEED, 0, place, purpose=int(writer == "large"))
    return InverseCdf(row.numpy(), Filters(**SAMPLED)).draw(draw)[0]


def entropy_of(logits: torch.Tensor) -> float:
    """In nats, over the tokenizer's ids."""
    log_p = logits[: hf_pairs.VOCABULARY].log_softmax(0)
    return float(-(log_p.exp() * log_p).sum())


def survives_calls(pair: RoutedModel, prompt: list[int]) -> int:
    """Forked, rewound, saved and resumed it writes what it would have; tokens computed again."""
    want = pair.generate([prompt])[0].token_ids
    run = pair.stream([prompt])
    while len(run.generated(0)) < TOKENS // 2:
        run.step()
    twin = run.fork(0)
    run.rewind(0, 17)
    saved = run.save(0)
    results = {event.sequence: event.result for event in run if event.result is not None}
    [resumed] = [event.result for event in pair.resume([saved]) if event.result is not None]
    assert [results[0].token_ids, results[twin].token_ids, resumed.token_ids] == [want] * 3
    return sum(count.recomputed for count in results[0].counts.values())


FREQUENT = (
    "llama",
    "qwen3",
    "qwen3_5_text",
    "gemma3_text",
    "gemma4_text",
    "mistral",
    "phi3",
    "phimoe",
    "gpt_oss",
    "deepseek_v3",
    "llama4_text",
    "nemotron_h",
)


def checked(name: str) -> dict[str, str]:
    """One line of the table (docs/families.md); an AssertionError says what does not hold."""
    model = build(name)
    pair, warned = routed(model, model, route="small")
    equals_generate(model)
    beside, results, threshold = half_routed(name, model)
    consistent = not any("token by token" in message for message in warned)
    if consistent:
        assert follows_from_full_passes(beside, results, threshold) > 0
        assert draws_from_full_passes(name, model, threshold) >= 0.95 * len(PROMPTS) * TOKENS
    recomputed = survives_calls(beside, PROMPTS[1])
    return {
        "family": name,
        "engine": pair.engine,
        "generate": "equal",
        "routed": "equal" if consistent else "as `generate`",
        "batch": "rows together" if pair.engine != "native" else "one after another",
        "calls": "equal, some tokens again" if recomputed else "equal",
    }
