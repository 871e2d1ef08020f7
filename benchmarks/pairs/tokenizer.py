"""The tokenizer of a pair: byte-level BPE with Qwen's pre-tokenizer, 302 ids for single digits."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from training_texts import TrainingTexts
from transformers import PreTrainedTokenizerFast

VOCABULARY = {1: 302, 2: 402}  # ids, by the digits that a token may have
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
# Qwen's expression: single digits (or a few), letters with one leading mark, marks with trailing
# newlines.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def corpus(family: TrainingTexts, count: int, seed: int) -> list[str]:
    """Texts from which the merges are learnt: the task's own, with some plain English."""
    generator = random.Random(seed)
    texts = []
    for _ in range(count):
        prompt, segments = family.text(generator, short=False)
        texts.append("user\n" + prompt + "\nassistant\n" + "".join(text for text, _ in segments))
        texts.append("Why?\n\nFirst:\n\n(so)\n\nand\n\n\n")
    return texts


def build(family: TrainingTexts, digits: int = 1, seed: int = 0) -> PreTrainedTokenizerFast:
    """Learns the merges; the same seed gives the same ids.

    Args:
        family: What the texts are of.
        digits: Of a number in one token, at most; numbers are cut from the left.
        seed: Of the texts.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN.replace("DIGITS", str(digits))), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY[digits] - len(SPECIAL) - len(THINK),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(family, 2000, seed), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": [SPECIAL[1]]})
    fast.add_tokens(list(THINK))
    fast.chat_template = CHAT_TEMPLATE
    return fast


def load_or_build(
    directory: Path, family: TrainingTexts, digits: int = 1
) -> PreTrainedTokenizerFast:
    """The tokenizer saved in the directory, or a new one saved there."""
    if (directory / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(directory)
    tokenizer = build(family, digits)
    tokenizer.save_pretrained(directory)
    return tokenizer
