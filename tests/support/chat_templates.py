"""Chat templates in the shapes that families have, in our own words, and tokenizers with them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken

from hf_pairs import byte_tokenizer


@dataclass(frozen=True)
class Shape:
    """How a family writes a chat.

    Attributes:
        format: Its way of thinking, a name of ``FORMATS``.
        tokens: Special tokens of it.
        turn: A turn, with ``{role}`` and ``{content}``.
        opening: What the template appends for the answer, with thinking.
        closed: The same without thinking; None where it cannot be switched off.
        roles: Its names of roles, where they are others.
    """

    format: str
    tokens: tuple[str, ...]
    turn: str
    opening: str
    closed: str | None
    roles: tuple[tuple[str, str], ...] = ()

    @property
    def template(self) -> str:
        """The chat template."""
        turn = self.turn
        names = dict(self.roles)
        role = "{{ " + repr(names) + ".get(m.role, m.role) }}" if names else "{{ m.role }}"
        said = "{{ m.content or '' }}{% for c in m.tool_calls or [] %}[{{ c.name }}]{% endfor %}"
        tools = "{% if tools %}" + turn.format(role="tools", content="{{ tools | length }}")
        off = self.closed if self.closed is not None else self.opening
        return (
            f"{tools}{{% endif %}}{{% for m in messages %}}{turn.format(role=role, content=said)}"
            "{% endfor %}{% if add_generation_prompt %}"
            "{% if enable_thinking is defined and not enable_thinking %}"
            f"{off}{{% else %}}{self.opening}{{% endif %}}{{% endif %}}"
        )

    @property
    def tokenizer(self) -> Any:
        """One that has them."""
        return tokenizer_with(*self.tokens, template=self.template)


SHAPES = {
    "qwen 3": Shape(
        "think",
        (),
        "<|im_start|>{role}\n{content}<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "deepseek": Shape(  # opened by the template; off is an end without a beginning
        "think",
        ("<｜User｜>", "<｜Assistant｜>", "<｜tools｜>", "<｜eos｜>"),
        "<｜{role}｜>{content}<｜eos｜>",
        "<｜Assistant｜><think>",
        "<｜Assistant｜></think>",
        (("user", "User"), ("assistant", "Assistant")),
    ),
    "glm": Shape(
        "think",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|tools|>", "<|tool|>"),
        "<|{role}|>\n{content}",
        "<|assistant|>\n<think>",
        "<|assistant|>\n<think></think>\n",
    ),
    "gpt-oss": Shape(
        "harmony",
        ("<|channel|>", "<|message|>", "<|start|>", "<|end|>"),
        "<|start|>{role}<|message|>{content}<|end|>",
        "<|start|>assistant",
        None,
    ),
    "magistral": Shape(
        "mistral",
        ("[THINK]", "[/THINK]", "[INST]", "[/INST]"),
        "[INST]{role}: {content}[/INST]",
        "",
        None,
    ),
    "seed": Shape(
        "seed",
        ("<seed:bos>", "<seed:eos>", "<seed:think>", "</seed:think>"),
        "<seed:bos>{role}\n{content}<seed:eos>",
        "<seed:bos>assistant\n",
        "<seed:bos>assistant\n<seed:think></seed:think>",
    ),
    "gemma 4": Shape(
        "gemma",
        ("<|turn>", "<turn|>", "<|channel>", "<channel|>"),
        "<|turn>{role}\n{content}<turn|>\n",
        "<|turn>model\n",
        "<|turn>model\n<|channel>thought\n<channel|>",
        (("assistant", "model"),),
    ),
    "command a": Shape(
        "cohere",
        ("<|TURN|>", "<|END|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        "<|TURN|>{role}: {content}<|END|>",
        "<|TURN|>chatbot: <|START_THINKING|>",
        "<|TURN|>chatbot: <|START_THINKING|><|END_THINKING|>",
        (("assistant", "chatbot"),),
    ),
}


def tokenizer_with(*tokens: str, template: str | None = None) -> Any:
    """A byte tokenizer with special tokens more."""
    tokenizer = byte_tokenizer(template)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    return tokenizer


def widened(model: Any, spare: int) -> Any:
    """A copy with so many output ids more, which never win."""
    if spare <= 0:
        return model
    twin = copy.deepcopy(model)
    twin.resize_token_embeddings(model.config.vocab_size + spare)
    bias = torch.full((model.config.vocab_size + spare,), -100.0)
    bias[: model.config.vocab_size] = model.lm_head.bias.detach()
    twin.lm_head.bias = torch.nn.Parameter(bias)
    return twin.eval()
