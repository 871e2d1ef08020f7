"""Bad calls of the Hugging Face engine, and bad trace files; run by `test_bad_input.py`."""

from __future__ import annotations

from typing import Any

import bad_input
import glimprouter as gr
from bad_input import Case, World, routed
from glimprouter.hf import ThinkingFormat

NAN = float("nan")
USER = {"role": "user", "content": "Hi"}


def asked(error: type[Exception], message: str, *prompts: Any, **options: Any) -> Case:
    """``generate`` of the shared pair."""
    return Case(
        lambda w: bad_input.shared_pair()[0].generate(list(prompts), **options), error, message
    )


def made(error: type[Exception], message: str, **changes: Any) -> Case:
    """Construction of a pair; a change that is a function makes the value."""

    def call(world: World) -> None:
        values = {name: v() if callable(v) else v for name, v in changes.items()}
        routed(**values).generate(["Hi"])

    return Case(call, error, message)


EMPTY = "the prompt is empty; give a question, a chat, or a list of token ids"
MIXED = "must hold messages .dicts. only, or token ids only"
NO_ROOM = (
    r"prompt 1 has \d+ tokens; with \d+ reserved for the answer nothing is left of the small"
    r" model's context of 96; shorten the prompt or lower max_answer_tokens"
)
PROMPTS = {
    "empty prompt": asked(ValueError, EMPTY, "Hi", ""),
    "white space": asked(ValueError, EMPTY, " \n\t"),
    "empty list": asked(ValueError, EMPTY, []),
    "mixed list": asked(TypeError, MIXED, [1, "a"]),
    "message and id": asked(TypeError, MIXED, [USER, 3]),
    "boolean ids": asked(TypeError, MIXED, [True]),
    "message without its list": asked(TypeError, "a list of messages .*, got dict", USER),
    "number": asked(TypeError, "a list of token ids, got float", 3.5),
    "bytes": asked(TypeError, "a list of token ids, got bytes", b"Hi"),
    "lone surrogate": asked(ValueError, "no valid Unicode text: .*surrogates", "Hi", "a\ud800"),
    "large id": asked(ValueError, "prompt id 302 lies outside the vocabulary of 302", [5, 302]),
    "negative id": asked(ValueError, "prompt id -1 lies outside", [-1]),
    "too many ids": asked(ValueError, NO_ROOM, "Hi", [5] * 90),
    "long message": asked(ValueError, NO_ROOM, "Hi", "x" * 200),
    "no room for the answer": asked(
        ValueError, "with 97 reserved for the answer", "Hi", max_answer_tokens=94
    ),
    "string for a list": Case(
        lambda w: bad_input.shared_pair()[0].generate("Hi"),
        TypeError,
        r"must be a list of prompts; for one prompt pass \[prompt\]",
    ),
    "generator for a list": Case(
        lambda w: bad_input.shared_pair()[0].stream(iter(["Hi"])), TypeError, "a list of prompts"
    ),
    "two seeds": asked(ValueError, "got 2 seeds for 1 prompts", "Hi", seeds=[1, 2]),
    "no seeds": asked(ValueError, "got 0 seeds for 1 prompts", "Hi", seeds=[]),
    "negative seed": asked(ValueError, r"seed must lie in \[0, 2\^64\)", "Hi", "Hi", seeds=[1, -1]),
    "fractional seed": asked(TypeError, "seed must be an integer, got 0.5", "Hi", seeds=0.5),
    "overridden threshold": asked(ValueError, "threshold must.* got nan", "Hi", threshold=NAN),
    "overridden nothing": asked(TypeError, "unknown option 'tau'", "Hi", tau=1.0),
    "manual route": asked(
        ValueError, 'route="manual" needs your own loop around StepRouter', "Hi", route="manual"
    ),
    "one trace of two": asked(
        ValueError, "trace_path takes one prompt, got 2", "Hi", "Ho", trace_path="trace.jsonl"
    ),
}
PAIRS = {
    "message without template": made(
        ValueError,
        "tokenizer has no chat template, .*; set tokenizer.chat_template, or pass token ids",
        tokenizer=lambda: bad_input.changed_tokenizer(template=False),
    ),
    "no newline": made(
        ValueError,
        "no sequence of tokens of this vocabulary writes a delimiter.*; check the delimiters",
        tokenizer=bad_input.tokenizer_without_newline,
        thinking=None,
    ),
    "marker that cannot be written": made(
        ValueError,
        "think_start: '<reason>' cannot be written by this tokenizer .*'<unk>'.* or None",
        tokenizer=bad_input.tokenizer_of_words,
        thinking=lambda: ThinkingFormat("<reason>", "</reason>"),
    ),
    "empty marker": made(
        ValueError, "think_end: '' cannot be written", thinking=lambda: ThinkingFormat("<a>", "")
    ),
    "unknown thinking": made(ValueError, 'one of "auto", "think", .*got \'loud\'', thinking="loud"),
    "thinking as a number": made(TypeError, "ThinkingFormat or None, got int", thinking=3),
    "thinking of one model": made(
        ValueError,
        "the small model's tokenizer has markers of thinking .think., the large model's has none",
        large_tokenizer=bad_input.tokenizer_of_words,
    ),
    "narrow small model": made(
        ValueError,
        "the small model has 300 output ids, but the tokenizer has 302: they do not belong",
        small=lambda: bad_input.tiny_model(1, 300),
    ),
    "narrow large model": made(
        ValueError, "the large model has 300", large=lambda: bad_input.tiny_model(1, 300)
    ),
    "narrow for its own tokenizer": made(
        ValueError,
        "the large model has 302 output ids, but the tokenizer has 303",
        large_tokenizer=lambda: bad_input.changed_tokenizer(extra="<extra>"),
    ),
    "tokens without bytes": made(
        ValueError,
        "cannot be mapped: the tokens of the large model's tokenizer do not write the text",
        large_tokenizer=bad_input.tokenizer_of_words,
        thinking=None,
        engine="gather",
    ),
    "ends of two vocabularies": made(
        ValueError,
        "eos_token_ids must say whose they are",
        large_tokenizer=lambda: bad_input.changed_tokenizer(extra="<extra>"),
        eos_token_ids=[1],
    ),
    "linear attention": made(
        ValueError,
        "the large model cannot be served on pages: .*, nor by gathering: it has layers of type"
        " 'linear_attention'.*, nor on a cache of its own: ",
        large=lambda: bad_input.model_with_layers("linear_attention"),
    ),
    "manual pair": made(
        ValueError, "your own loop around StepRouter", config=gr.RouterConfig(route="manual")
    ),
    "config of a pair": made(TypeError, "a RouterConfig, got dict", config={"threshold": 1.0}),
    "on_invalid": made(ValueError, '"raise" or "end", got \'ignore\'', on_invalid="ignore"),
    "no batch": made(ValueError, "max_sequences must be >= 1, got 0", max_sequences=0),
    "batch as text": made(TypeError, "max_sequences.* got '8'", max_sequences="8"),
}


def trace(error: type[Exception], message: str, content: Any) -> Case:
    """A trace file whose content is made from that of a good one."""
    return Case(lambda w: w.read_trace(content(w.trace_bytes())), error, message)


FOREIGN = r"trace\.jsonl is not a glimprouter trace"
TRACES = {
    "empty trace": trace(ValueError, f"{FOREIGN}, or is cut short", lambda good: b""),
    "binary trace": trace(ValueError, rf"{FOREIGN} \(not UTF-8", lambda good: b"\x80\xff\x00"),
    "trace of zeros": trace(ValueError, f"{FOREIGN}.*line 1", lambda good: bytes(4096)),
    "foreign text": trace(ValueError, f"{FOREIGN}.*line 1", lambda good: b"Dear diary\n"),
    "foreign JSON": trace(ValueError, f"{FOREIGN} .no header line", lambda good: b'{"a": 1}\n'),
    "JSON list": trace(ValueError, f"{FOREIGN}: line 1 is no JSON", lambda good: b"[1]\n" + good),
    "half a trace": trace(ValueError, "cut short", lambda good: good[: len(good) // 2]),
    "trace without end": trace(
        ValueError, "cut short: its end line is missing", lambda good: good[: good.rindex(b"{")]
    ),
    "later trace": trace(
        ValueError,
        "has schema version 99; this glimprouter reads 2",
        lambda good: good.replace(b'"schema_version": 4', b'"schema_version": 99'),
    ),
    "no trace": Case(lambda w: gr.Trace.from_jsonl(w.path), FileNotFoundError, r"trace\.jsonl"),
}
