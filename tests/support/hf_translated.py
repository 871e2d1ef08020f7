"""Pairs of tiny models whose tokenizers differ."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import glimprouter as gr
import hf_pairs
import tokenizer_kinds
from families import build
from glimprouter.boundary import token_bytes
from glimprouter.hf import EncodedPrompt, RoutedModel
from hf_pairs import ENGINE, Pair
from shared_trials import share

TEXTS = (
    "First, we add two and two.",
    "Why?",
    "Das ist schön: señor, 数を足す。 So it is slow!",
    "so the so",
    "Done (so far)",
)
# Two BPEs of bytes from other corpora, and BPE of characters with byte fallback, newlines merged
# or not.
KINDS = (("gpt2", "qwen"), ("qwen", "gemma"), ("llama2", "gpt2"))
_MODEL_OPTIONS = (
    "drafts",
    "engine",
    "kv_memory_bytes",
    "max_sequences",
)  # the others are the router's


@cache
def random_model(kind: str, layers: int, seed: int, context: int = 2048) -> Any:
    """Random weights and steps of a few tokens: text and broken text, never special ids."""
    known = token_bytes(tokenizer_kinds.tokenizer_of(kind))
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(known) + 3,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=context,
            initializer_range=0.2,
            tie_word_embeddings=False,
            **{f"{name}_token_id": None for name in ("bos", "eos", "pad")},
        )
    )
    return _speaking(model, known)


@cache
def family_model(kind: str, family: str, seed: int) -> Any:
    """The same of another family."""
    known = token_bytes(tokenizer_kinds.tokenizer_of(kind))
    width = len(known) + 3
    per_layer = {"vocab_size_per_layer_input": width} if family == "gemma4_text" else {}
    return _speaking(build(family, seed=seed, vocab_size=width, **per_layer), known)


def _speaking(model: Any, known: list[bytes | None]) -> Any:
    """Gives a model's logits a bias, and a width that makes them decisive."""
    bias = torch.full((len(known) + 3,), -100.0)
    for token, data in enumerate(known):
        if data is not None and not data.startswith(b"<"):
            ends = data.count(b"\n")
            bias[token] = 0.5 * torch.randn(()) + (2.0 if ends > 1 else 1.0 if ends else 0.0)
            bias[token] += 0.8 * (len(data) > 2)
    with torch.no_grad():
        model.lm_head.weight *= 2.2
        model.lm_head.bias = torch.nn.Parameter(bias)
    model.generation_config.eos_token_id = None
    return share(model.eval())


def prompts(small: str, large: str) -> list[EncodedPrompt]:
    """The same text in the tokens of each."""
    encode = [tokenizer_kinds.tokenizer_of(kind).encode for kind in (small, large)]
    return [EncodedPrompt(text, *(list(one(text)) for one in encode)) for text in TEXTS]


def routed(
    small: str,
    large: str,
    *,
    context: int = 2048,
    families: tuple[str, str] | None = None,
    **config: Any,
) -> RoutedModel:
    """Greedy, the guard off, steps cut often; of two families where they are named."""
    if families is None:
        models = random_model(small, 2, 5), random_model(large, 3, 6, context)
    else:
        models = family_model(small, families[0], 5), family_model(large, families[1], 6)
    options = {
        "threshold": 2.3,
        "temperature": 0.0,
        "top_p": 1.0,
        "repetition_guard": False,
        "max_think_tokens": 60,
        "max_answer_tokens": 8,
        "max_step_tokens": 5,
    }
    extra = {name: config.pop(name) for name in _MODEL_OPTIONS if name in config}
    return RoutedModel(
        *models,
        tokenizer_kinds.tokenizer_of(small),
        gr.RouterConfig(**{**options, **config}),
        large_tokenizer=tokenizer_kinds.tokenizer_of(large),
        **{"engine": ENGINE.get(), "drafts": 0, **extra},
    )


def from_text(description: str) -> PreTrainedTokenizerFast:
    """A tokenizer from its JSON."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(description))


def permutation(tokenizer: Any) -> list[int]:
    """New id of every id: the ordinary tokens shuffled, the added ones in the opposite order."""
    added = sorted(tokenizer.added_tokens_decoder)
    base = added[0]
    generator = torch.Generator().manual_seed(9)
    return [*torch.randperm(base, generator=generator).tolist(), *reversed(added)]


def permuted_tokenizer(tokenizer: Any) -> PreTrainedTokenizerFast:
    """The same tokens under other ids."""
    new = permutation(tokenizer)
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    description["model"]["vocab"] = {token: new[i] for token, i in vocabulary.items()}
    for token in description["added_tokens"]:
        token["id"] = new[token["id"]]
    description["added_tokens"].sort(key=lambda token: token["id"])
    permuted = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
    )
    permuted.chat_template = tokenizer.chat_template
    assert [permuted.convert_ids_to_tokens(i) for i in new] == [
        tokenizer.convert_ids_to_tokens(i) for i in range(len(new))
    ]
    return permuted


def permuted_model(model: Any, tokenizer: Any) -> Any:
    """The same model over the permuted ids."""
    new = torch.tensor(permutation(tokenizer))
    permuted = copy.deepcopy(model)
    ends = model.generation_config.eos_token_id
    permuted.generation_config.eos_token_id = (
        None if ends is None else [int(new[i]) for i in ([ends] if isinstance(ends, int) else ends)]
    )
    parameters = {
        id(parameter): parameter
        for layer in (permuted.get_input_embeddings(), permuted.get_output_embeddings())
        for parameter in layer.parameters()
    }
    with torch.no_grad():
        for parameter in parameters.values():
            parameter[new] = parameter[: len(new)].clone()
    return permuted


def permuted_pair(name: str, which: str) -> tuple[Pair, Any, list[Any]]:
    """A pair, the same with one model permuted (as a factory of RoutedModel), its prompts."""
    pair = hf_pairs.pair_of(name)
    new = permutation(pair.tokenizer)
    other = permuted_tokenizer(pair.tokenizer)
    model = permuted_model(pair.model(which), pair.tokenizer)
    own = [[new[i] for i in ids] for ids in pair.prompts]
    if which == "small":
        models, tokenizers = (model, pair.large), (other, pair.tokenizer)
        encoded = [EncodedPrompt(None, *ids) for ids in zip(own, pair.prompts, strict=True)]
    else:
        models, tokenizers = (pair.small, model), (pair.tokenizer, other)
        encoded = [EncodedPrompt(None, *ids) for ids in zip(pair.prompts, own, strict=True)]

    def make(config: gr.RouterConfig, drafts: Any = 0) -> RoutedModel:
        return RoutedModel(
            *models,
            tokenizers[0],
            config,
            large_tokenizer=tokenizers[1],
            engine=ENGINE.get(),
            drafts=drafts,
        )

    return pair, make, encoded
