"""Real tokenizers of each kind, trained on a few sentences.

Byte-level BPE as in GPT-2 and Qwen, BPE with byte fallback as in Llama-2, with runs of newlines as
tokens of their own as in Gemma, and Unigram as in T5.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

# Qwen's expression, as in benchmarks/pairs/tokenizer.py: marks keep the newlines behind them.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "First, we add two and two.\n\nThat is four.\n\nSo (perhaps) it is four:\n\n\n4\n",
    "Then we wait.\n\nWhy?\n\nBecause the naïve way is slow!\n\n\n\nDone (so far)\n\n",
    "Das ist schön.\n\nSí, señor\n\n数を足す。\n\nYes\n",
] * 20
SPECIAL = ("<|im_end|>", "<|endoftext|>", "<|im_start|>")
MARKERS = ("<think>", "</think>")


def wrapped(backend: Tokenizer, markers: Sequence[str] = MARKERS) -> PreTrainedTokenizerFast:
    """With special tokens and ordinary added ones, as checkpoints have both."""
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    backend.add_tokens([AddedToken(text, normalized=False) for text in (*markers, "<tool>\n")])
    unknown = "<unk>" if backend.token_to_id("<unk>") is not None else None
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=SPECIAL[0], pad_token=SPECIAL[1], unk_token=unknown
    )


def byte_level(pre_tokenizer: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return wrapped(backend)


def gpt2() -> PreTrainedTokenizerFast:
    """The whole text at once, so that merges run over everything, newlines included."""
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))


def qwen() -> PreTrainedTokenizerFast:
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated")
    return byte_level(
        pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    )


def sentencepiece_bpe(pieces: Sequence[str], merges: Sequence[tuple[str, str]]) -> Any:
    """As transformers converts SentencePiece BPE: no pre-tokenizer, bytes as a last resort."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    backend = Tokenizer(
        models.BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=list(merges),
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrapped(backend)


LETTERS = ("▁", *"abcdefstu.,!()ñ。")
WORDS = [("▁", "s"), ("▁s", "o"), ("t", "h"), ("▁", "th"), (".", "▁so"), ("▁", "▁")]


def llama2() -> PreTrainedTokenizerFast:
    """Newlines by byte fallback only: every delimiter is split."""
    merged = ["".join(pair) for pair in WORDS]
    return sentencepiece_bpe([*LETTERS, "o", "h", *merged], WORDS)


def gemma() -> PreTrainedTokenizerFast:
    """Runs of newlines are pieces; <0x0A> is in the vocabulary as well."""
    merges = [*WORDS, ("\n", "\n"), ("\n\n", "\n"), (".", "\n\n"), ("。", "\n\n")]
    merged = ["".join(pair) for pair in merges]
    return sentencepiece_bpe([*LETTERS, "o", "h", "\n", *merged], merges)


def unigram() -> PreTrainedTokenizerFast:
    """As T5, but with newlines: Metaspace around pieces with scores, no byte fallback."""
    pieces = ["▁", "▁so", "▁the", ".", ".\n\n", "\n", "\n\n", "\n\n\n", "a", "b", "ñ", "。", "\t"]
    scores = [("<unk>", 0.0), *((piece, -float(len(pieces) - i)) for i, piece in enumerate(pieces))]
    backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return wrapped(backend)


BUILDERS = {"gpt2": gpt2, "qwen": qwen, "llama2": llama2, "gemma": gemma, "unigram": unigram}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    return BUILDERS[name]()
