"""Text that arrives in pieces is the text of the whole, whatever the bytes are."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tokenizer_kinds
from glimprouter.hf.pair.text import IncrementalDecoder, SharedTokenizer, byte_tokens
from hf_pairs import TOKENIZER, VOCABULARY

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def ids_of(data: bytes) -> list[int]:
    """One token a byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    stand_in = {byte: chr(byte) for byte in printable}
    stand_in.update({byte: chr(256 + index) for index, byte in enumerate(hidden)})
    return [TOKENIZER.convert_tokens_to_ids(stand_in[byte]) for byte in data]


def pieces(ids: list[int]) -> list[str]:
    decoder = IncrementalDecoder(TOKENIZER)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=30))
@example(ids_of(b"\x80\x80\x80\xe2\x82\xaca"))
@example(ids_of(b"\xf0\x9f\x99"))
@example(ids_of(b"\xe2\x82\xe2\x82\xac"))
def test_any_ids(ids: list[int]) -> None:
    """Random models write bytes that are no UTF-8; then each bad one is a replacement character."""
    assert "".join(pieces(ids)) == TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=24), st.text("aé€🙂\N{REPLACEMENT CHARACTER}", max_size=8))
def test_any_bytes(data: bytes, text: str) -> None:
    """Stray bytes before valid text, a token a byte."""
    ids = ids_of(data + text.encode())
    assert "".join(pieces(ids)) == (data + text.encode()).decode(errors="replace")


@pytest.mark.parametrize("text", ["漢字 🙂 é", "🙂🙂", "aé漢"])
def test_single_bytes_wait_for_their_character(text: str) -> None:
    """Byte fallback: decoded in between, a whole run of bytes would be replacement characters."""
    tokenizer = tokenizer_kinds.tokenizer_of("llama2")
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert any(token in byte_tokens(tokenizer) for token in ids)
    reader = SharedTokenizer(tokenizer)
    for cut in range(1, len(ids) + 1):
        decoder = reader.incremental()
        got = "".join(decoder.push(token, 0) for token in ids[:cut])
        decoder.drop_unfinished()
        got += "".join(decoder.push(token, 0) for token in ids) + decoder.flush()
        joined = reader.decode([*ids[:cut], *ids], [0] * (cut + len(ids)), cut=cut)
        assert got == joined
        assert UNFINISHED not in got


@pytest.mark.parametrize("text", ["déjà vu 🙂 €", "ﬁn\n\n.\n\n</think>"])
def test_valid_text_comes_in_whole_characters(text: str) -> None:
    """No piece ends in the middle of a character, and none is held longer than it must be."""
    ids = ids_of(text.encode())
    got = pieces(ids)
    assert UNFINISHED not in "".join(got)
    for end in range(len(ids)):
        complete = text.encode()[: end + 1].decode(errors="ignore")
        assert "".join(got[: end + 1]) == complete
