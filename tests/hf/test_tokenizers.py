"""StepBoundary and token_bytes on real tokenizers, against what these decode themselves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

import glimprouter as gr
from glimprouter.boundary import token_bytes
from tokenizer_kinds import BUILDERS, CORPUS, MARKERS, SPECIAL, tokenizer_of

WHITE_SPACE = " \t\n\v\f\r"
DELIMITER_SETS = [("\n\n",), ("\n",), (".", "\n\n"), ("so", "\n\n\n"), ("。", "\n\n")]


@cache
def bytes_of(name: str) -> tuple[bytes | None, ...]:
    return tuple(token_bytes(tokenizer_of(name)))


@cache
def boundary_of(name: str, delimiters: tuple[str, ...]) -> gr.StepBoundary:
    return gr.StepBoundary.from_tokenizer(tokenizer_of(name), delimiters)


@cache
def special_ids(name: str) -> tuple[int, ...]:
    added = tokenizer_of(name).added_tokens_decoder
    return tuple(index for index, token in added.items() if token.special)


@cache
def anchor_of(name: str) -> tuple[int, str]:
    """A token that is put in front of a text, for SentencePiece drops the first one's space."""
    # The last one: a byte of byte fallback would merge with broken bytes behind it.
    token = max(index for index, data in enumerate(bytes_of(name)) if data == b".")
    return token, tokenizer_of(name).decode([token])


def decoded(name: str, ids: Sequence[int]) -> str:
    """Text of ids without special ones, by the tokenizer alone; a leading space is kept."""
    anchor, text = anchor_of(name)
    whole = tokenizer_of(name).decode([anchor, *ids], clean_up_tokenization_spaces=False)
    assert whole.startswith(text)
    return whole[len(text) :]


def text_of(name: str, ids: Sequence[int]) -> list[str]:
    """The texts between special tokens and markers of thinking."""
    special = {*special_ids(name), *tokenizer_of(name).convert_tokens_to_ids(MARKERS)}
    runs: list[list[int]] = [[]]
    for token in ids:
        if token in special:
            runs.append([])
        else:
            runs[-1].append(token)
    return [decoded(name, run) for run in runs]


def ends_a_step(texts: Sequence[str], delimiters: Sequence[str]) -> bool:
    """Whether a delimiter ends in these texts behind (or with) their first visible character."""
    visible = False
    for text in texts:
        for end in range(1, len(text) + 1):
            visible |= text[end - 1] not in WHITE_SPACE
            if visible and any(text[:end].endswith(delimiter) for delimiter in delimiters):
                return True
    return False


def searched_boundaries(
    name: str, ids: Sequence[int], delimiters: Sequence[str]
) -> list[tuple[int, int]]:
    """First and last index of every finished step, by searching what the tokenizer decodes."""
    found, start = [], 0
    for index in range(len(ids)):
        if ends_a_step(text_of(name, ids[start : index + 1]), delimiters):
            found.append((start, index))
            start = index + 1
    return found


def automaton_boundaries(boundary: gr.StepBoundary, ids: Sequence[int]) -> list[tuple[int, int]]:
    state, start, found = 0, 0, []
    for index, token in enumerate(ids):
        state, hit = boundary.effect(state, token)
        if hit:
            found.append((start, index))
            start = index + 1
    return found


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, tuple[str, ...], list[int]]:
    """A tokenizer, delimiters, and ids: any, line ends often, or those of an encoded text."""
    name = draw(st.sampled_from(list(BUILDERS)))
    known = dict(enumerate(bytes_of(name)))
    if name in ("llama2", "gemma"):
        # Their decoder replaces every byte of a run that is not UTF-8 as a whole, newlines too.
        known = {index: data for index, data in known.items() if data is None or data.isascii()}
    lines = [index for index, data in known.items() if data and b"\n" in data]
    words = [index for index, data in known.items() if data and data.strip()]
    chosen = st.one_of(
        st.sampled_from(lines),
        st.sampled_from(words),
        st.sampled_from(special_ids(name)),
        st.sampled_from(list(known)),
    )
    text = st.text(alphabet="\n .so(ñ。🜁<", max_size=30)
    encoded = text.map(lambda t: tokenizer_of(name).encode(t, add_special_tokens=False))
    ids = draw(st.lists(chosen, max_size=24) | encoded)
    return name, draw(st.sampled_from(DELIMITER_SETS)), list(ids)


@settings(max_examples=400, deadline=None)
@given(streams())
def test_any_stream_equals_a_search_of_what_is_decoded(
    case: tuple[str, tuple[str, ...], list[int]],
) -> None:
    name, delimiters, ids = case
    expected = searched_boundaries(name, ids, delimiters)
    assert automaton_boundaries(boundary_of(name, delimiters), ids) == expected


@pytest.mark.parametrize("name", BUILDERS)
def test_every_token_alone_writes_its_bytes(name: str) -> None:
    """Bytes that form no text alone come back as replacement characters."""
    known = bytes_of(name)
    assert len(known) == len(tokenizer_of(name))
    for index, data in enumerate(known):
        if index in special_ids(name):
            assert data is None
        else:
            assert data is not None
            written = decoded(name, [index])
            ordinary = data.decode(errors="replace")
            assert written == ordinary or set(written) == {"\ufffd"}, (index, data, written)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("text", [*CORPUS[:3], "\n\n\nso\n.\n\n🜁\u2028", " so  so"])
def test_bytes_of_an_encoded_text_are_the_text(name: str, text: str) -> None:
    if name == "unigram":  # it has no byte fallback: only what its pieces can write
        text = "".join(c for c in text if c in ".\nabñ。\t")
    ids = tokenizer_of(name).encode(text, add_special_tokens=False)
    written = b"".join(bytes_of(name)[token] or b"" for token in ids)
    assert written.decode() in ((text,) if name in ("gpt2", "qwen") else (text, f" {text}"))


# Bytes of tokens that must be there, or the streams above would prove less than they say.
OCCURRENCES: dict[str, tuple[bytes, ...]] = {
    "gpt2": (b"\n", b".\n\n", b"\n\n"),
    "qwen": (b"\n", b".\n\n", b"\n\n"),
    "llama2": (b"\n", b". so", b"  "),
    "gemma": (b"\n", b"\n\n", b"\n\n\n", b".\n\n", "。\n\n".encode()),
    "unigram": (b"\n", b"\n\n", b"\n\n\n", b".\n\n"),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_merged_split_and_repeated_delimiters_occur(name: str) -> None:
    known = bytes_of(name)
    for data in (*OCCURRENCES[name], b"<think>", b"</think>", b"<tool>\n"):
        assert data in known, data
    merged = [data for data in known if data and b"\n\n" in data]
    assert bool(merged) == (name != "llama2")
    if name in ("llama2", "gemma"):
        tokens = tokenizer_of(name).convert_ids_to_tokens(range(len(known)))
        assert known[tokens.index("<0x0A>")] == b"\n"
        assert known[tokens.index("<0xE3>")] == b"\xe3"


STEPS = "so.\n\nab\n\n\n.\n\n"
STEP_ENDS = {  # the ids that end the three steps of STEPS, as bytes
    "gpt2": (b"o.\n\n", b"\n\n", b".\n\n"),
    "qwen": (b".\n\n", b"\n\n", b".\n\n"),
    "llama2": (b"\n", b"\n", b"\n"),
    "gemma": (b".\n\n", b"\n\n\n", b".\n\n"),
    "unigram": (b".\n\n", b"\n\n\n", b".\n\n"),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_readable_text(name: str) -> None:
    ids = tokenizer_of(name).encode(STEPS, add_special_tokens=False)
    ends = [end for _, end in automaton_boundaries(boundary_of(name, ("\n\n",)), ids)]
    assert tuple(bytes_of(name)[ids[end]] for end in ends) == STEP_ENDS[name]


def test_a_token_that_only_looks_like_a_byte() -> None:
    backend = Tokenizer(models.BPE(vocab={"<0xyz>": 0, "<0x0A>": 1, "<0x0A": 2}, merges=[]))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert token_bytes(tokenizer) == [b"<0xyz>", b"\n", b"<0x0A"]
    assert tokenizer.decode([0, 1, 2]) == "<0xyz>\n<0x0A"


@pytest.mark.parametrize("name", BUILDERS)
def test_markers_and_closing_ids(name: str) -> None:
    tokenizer, boundary = tokenizer_of(name), boundary_of(name, ("\n\n",))
    assert tokenizer.convert_ids_to_tokens(boundary.think_start_ids) == ["<think>"]
    assert tokenizer.convert_ids_to_tokens(boundary.think_end_ids) == ["</think>"]
    assert tokenizer.convert_ids_to_tokens(boundary.eos_ids) == [SPECIAL[0]]
    closing = b"".join(bytes_of(name)[token] or b"" for token in boundary.close_ids)
    assert closing == b"\n</think>\n\n"
    assert boundary.vocab_size == len(tokenizer)


@pytest.mark.parametrize("ending", SPECIAL[:2])
def test_any_of_several_end_of_sequence_ids_ends(ending: str) -> None:
    tokenizer = tokenizer_of("qwen")
    wanted = tokenizer.convert_tokens_to_ids(list(SPECIAL[:2]))
    boundary = gr.StepBoundary.from_tokenizer(tokenizer, eos_token_ids=wanted)
    assert boundary.eos_ids == wanted
    router = gr.StepRouter(boundary, gr.RouterConfig(temperature=0.0))
    rows, outputs = [router.open()], router.outputs(1)
    for text, end in (("a", gr.EndReason.NONE), (ending, gr.EndReason.EOS)):
        logits = np.zeros((1, boundary.vocab_size), np.float32)
        logits[0, tokenizer.convert_tokens_to_ids(text)] = 30.0
        router.step("small", logits, rows, outputs)
        assert outputs.end_reason[0] == end
    assert router.phase(rows[0]) == gr.Phase.DONE


def test_end_of_sequence_ids_as_given() -> None:
    tokenizer = tokenizer_of("gemma")
    assert gr.StepBoundary.from_tokenizer(tokenizer, eos_token_ids=7).eos_ids == [7]
    assert gr.StepBoundary.from_tokenizer(tokenizer, eos_token_ids=()).eos_ids == []
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert gr.StepBoundary.from_tokenizer(bare).eos_ids == []


def test_a_tokenizer_without_markers() -> None:
    backend = Tokenizer.from_str(qwen_without_markers())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    spelled = gr.StepBoundary.from_tokenizer(tokenizer)
    assert (spelled.think_start_ids, spelled.think_end_ids) == ([], [])
    assert [tokenizer.decode(ids) for ids in spelled.think_end_markers] == ["</think>"]
    assert tokenizer.decode(spelled.close_ids) == "\n</think>\n\n"
    boundary = gr.StepBoundary.from_tokenizer(tokenizer, think_start=None, think_end=None)
    markers = boundary.think_start_ids, boundary.think_end_ids, boundary.close_ids
    assert markers == ([], [], [])


def qwen_without_markers() -> str:
    """Its description before anything was added."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return str(backend.to_str())
