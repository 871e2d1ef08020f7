"""Streamed text has no broken character: across tokens, across hand-offs, across forced closes.

The models are chains of bytes: each token has one successor, so that what they write is known.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import glimprouter as gr
import hf_pairs
from glimprouter.hf import RoutedModel

pytestmark = pytest.mark.both_engines

TEXT = "🙂漢é字 ь"  # no byte twice: each has one successor
HIDDEN = 320  # a place for each token
BROKEN = "\N{REPLACEMENT CHARACTER}"


def ids_of(text: str) -> list[int]:
    ids: list[int] = hf_pairs.TOKENIZER.encode(text, add_special_tokens=False)
    return ids


@cache
def chain(*sure: float) -> Any:
    """A model that writes TEXT for ever; what follows anything else is its beginning.

    Args:
        sure: Logits of the successor, in turn: the larger, the lower the entropy.
    """
    config = Qwen3Config(
        vocab_size=HIDDEN,
        hidden_size=HIDDEN,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).eval()
    ids = ids_of(TEXT)
    after = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(HIDDEN))
        for layer in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            layer.weight.zero_()
        model.lm_head.weight.zero_()
        for token in range(HIDDEN):
            place = ids.index(token) if token in ids else 0
            logit = sure[place % len(sure)] / HIDDEN**0.5  # the norm makes a row that much longer
            model.lm_head.weight[after.get(token, ids[0]), token] = logit
    return model


@pytest.mark.parametrize("step", [4, 5, 7])
@pytest.mark.parametrize("think", range(16, 24))
def test_no_broken_character(step: int, think: int) -> None:
    """Steps end anywhere in a character, and so does the thinking."""
    model = RoutedModel(
        chain(4.0, 14.0, 14.0),
        chain(9.0),
        hf_pairs.TOKENIZER,
        gr.RouterConfig(
            temperature=0.0,
            threshold=2.5,
            max_step_tokens=step,
            max_think_tokens=think,
            max_answer_tokens=len(ids_of(TEXT)),
            repetition_guard=False,
        ),
        engine=hf_pairs.ENGINE.get(),
        eos_token_ids=[],
    )
    events = list(model.stream([ids_of("Hi")]))
    [result] = [event.result for event in events if event.result is not None]
    pieces = [event.text or "" for event in events if event.kind == "token"]
    assert {step.model for step in result.trace.steps} == {"small", "large"}
    assert BROKEN not in "".join(pieces)
    assert BROKEN not in result.text + result.answer
    repeated = TEXT * 9
    whole = repeated.encode()[:think].decode(errors="ignore")
    assert result.text.startswith(whole)
    assert result.answer == TEXT
    assert "".join(pieces) == f"{whole}\n</think>\n\n{TEXT}"
