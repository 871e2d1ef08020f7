"""Models that are wrong in one way each: the trial sees it, and each is refused or served right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput, CausalLMOutputWithPast

import glimprouter as gr
import hf_pairs
from families import build, config_of
from family_checks import MARGIN, PROMPTS, equals_generate, generated, routed
from glimprouter.hf import RoutedModel
from glimprouter.hf.attention.trial import why_not_paged
from glimprouter.hf.engine.choice import ENGINES
from glimprouter.hf.trial.windows import narrowed, widest_window
from wrong_models import IgnoresPositions


class IgnoresCache(LlamaForCausalLM):
    """Takes a cache, hands it back, and computes without it."""

    def forward(self, input_ids: Any = None, past_key_values: Any = None, **options: Any) -> Any:
        options.pop("use_cache", None)
        output = super().forward(input_ids, use_cache=False, **options)
        return CausalLMOutputWithPast(logits=output.logits, past_key_values=past_key_values)


class LlamaWithoutPositions(IgnoresPositions, LlamaForCausalLM):
    """Every pass begins at position 0."""


class KeepsStateInItself(LlamaForCausalLM):
    """No cache argument: the text so far is an attribute, as if one sequence were all there is."""

    def forward(self, input_ids: Any = None, use_cache: bool = False, **options: Any) -> Any:
        before = getattr(self, "before", None) if use_cache else None
        text = input_ids if before is None else torch.cat([before, input_ids], dim=1)
        if use_cache:
            self.before = text
        kept = options.get("logits_to_keep", 0)
        logits = super().forward(text, use_cache=False, logits_to_keep=kept).logits
        return CausalLMOutput(logits=logits[:, -input_ids.shape[1] :])


class SeesTheBatch(LlamaForCausalLM):
    """The mean over all rows, or over all that is packed into one, goes into the logits."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        mean = output.logits.mean(dim=0, keepdim=True)
        output.logits = output.logits + 3.0 * (mean - output.logits).roll(1, dims=-1)
        return output


def planted(kind: Any) -> Any:
    torch.manual_seed(1)
    return kind(config_of("llama")).eval()


WRONG = [
    *((KeepsStateInItself, engine) for engine in ENGINES),
    *((LlamaWithoutPositions, engine) for engine in ("paged", "gather")),
    *((IgnoresCache, engine) for engine in ("gather", "native")),
    (SeesTheBatch, "gather"),
]


@pytest.mark.parametrize(("kind", "engine"), WRONG)
def test_what_is_wrong_is_refused(kind: Any, engine: Any) -> None:
    """Whichever of the two it is; with the name and what was seen."""
    model = planted(kind)
    sound = build("llama")
    for small, large, name in ((model, sound, "small"), (sound, model, "large")):
        with pytest.raises(ValueError, match=rf"the {name} model cannot be served"):
            RoutedModel(small, large, hf_pairs.TOKENIZER, engine=engine)


@pytest.mark.parametrize(
    ("kind", "engine"),
    [(IgnoresCache, "paged"), (SeesTheBatch, "paged"), (SeesTheBatch, "native")],
)
def test_where_the_fault_cannot_matter_it_is_served(kind: Any, engine: Any) -> None:
    """Pages are no cache argument; and packed or alone a batch has one row."""
    model = planted(kind)
    options = {"threshold": 1.0, "temperature": 0.0, "max_answer_tokens": 0, "route": "small"}
    config = gr.RouterConfig(**options, max_think_tokens=40, repetition_guard=False)
    markers: dict[str, Any] = {"thinking": None, "eos_token_ids": []}
    pair = RoutedModel(model, model, hf_pairs.TOKENIZER, config, engine=engine, **markers)
    for prompt, result in zip(PROMPTS, pair.generate(PROMPTS), strict=True):
        ids = list(prompt)
        for token in result.token_ids:
            with torch.inference_mode():
                logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert logits[token] > logits.max() - MARGIN
            ids.append(token)


def test_wrong_in_generate_too_it_is_served_as_generate_does() -> None:
    """Passes with a cache are not those without one: no engine may guess which are meant."""
    model = planted(LlamaWithoutPositions)
    pair, warned = routed(model, model, route="small")
    assert pair.engine == "native"
    assert any("token by token" in message for message in warned)
    equals_generate(model)


@pytest.mark.parametrize("window", [24, 300])
def test_a_window_that_only_the_mask_knows(window: int) -> None:
    """Wider than the text of the trial, too; the prompt is longer than the window."""
    model = build("phimoe", sliding_window=window)
    assert "differ by" in str(why_not_paged(model))
    pair, _ = routed(model, model, route="small")
    assert pair.engine == "gather"
    prompt = (hf_pairs.raw_prompts((40,))[0] * 9)[: window + 16]
    assert pair.generate([prompt])[0].token_ids == generated(model, prompt)


def test_a_selection_that_only_a_long_text_needs() -> None:
    """Sparse attention keeps the best tokens: all of them, until the text is longer."""
    model = build("glm_moe_dsa", index_topk=200)
    with pytest.raises(ValueError, match="cannot be served on pages"):
        RoutedModel(model, model, hf_pairs.TOKENIZER, engine="paged")


def test_windows_are_as_they_were() -> None:
    for family in ("gemma3_text", "llama4_text", "phimoe", "recurrent_gemma", "glm_moe_dsa"):
        model = build(family)
        before = [dict(vars(module)) for module in model.modules()]
        config = model.config.to_dict()
        assert widest_window(model.config) > 8
        with narrowed(model):
            assert widest_window(model.config) <= 8
            assert model.config.to_dict() != config
        assert model.config.to_dict() == config
        assert [dict(vars(module)) for module in model.modules()] == before
