"""VocabularyMap and TokenLedger against a plain model (ledger_model.py), on random vocabularies."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import glimprouter as gr
from ledger_model import LedgerModel, Words
from saved_bytes import with_checksum

STEPS = int(os.environ.get("GLIMPROUTER_PROPERTY_STEPS", "5000"))
STEPS_A_RUN = 25
# Letters, a character of two bytes and one of four, and a byte that is in no character. (One of
# three is in test_kv_vocabularies.py.)
BYTES = (b"a", b"b", b"\xc3", b"\xa9", b"\xf0", b"\x9f", b"\x9c", b"\x81", b"\xff")
PARTS = (*BYTES, b"ab", b"ba", b"aab", b"\xc3\xa9", b"\xf0\x9f", b"\x9f\x9c", b"\x9c\x81",
         b"\xf0\x9f\x9c", b"\xf0\x9f\x9c\x81", b"a\xc3", b"\xa9b", b"b\xf0",
         b"\x81\xff")  # fmt: skip


@st.composite
def vocabularies(draw: st.DrawFn, models: int = 2) -> Words:
    """Each with every byte, some merged tokens, duplicates, special tokens and two with roles."""
    tokens: list[list[bytes | None]] = []
    secondary: list[list[int]] = []
    for _ in range(models):
        merged: list[bytes | None] = draw(st.lists(st.sampled_from(PARTS), max_size=8))
        special = draw(st.lists(st.sampled_from([None, b"<end>", b""]), min_size=2, max_size=4))
        own = draw(st.permutations([*BYTES, *merged, *special]))
        tokens.append(own)
        text = [i for i, data in enumerate(own) if data in PARTS]
        secondary.append(draw(st.lists(st.sampled_from(text), unique=True, max_size=4)))
    special_ids = [[i for i, data in enumerate(own) if data not in PARTS] for own in tokens]
    # Of equal length: the first two special ids of each stand for each other; the second id may
    # have another counterpart as well.
    roles = [[ids[0] for ids in special_ids], [ids[1] for ids in special_ids]]
    if draw(st.booleans()):
        roles.append([special_ids[0][0], *(ids[-1] for ids in special_ids[1:])])
    # "<end>" without a role could not be written by the others.
    named = [{role[m] for role in roles} for m in range(models)]
    tokens = [
        [None if data == b"<end>" and i not in named[m] else data for i, data in enumerate(own)]
        for m, own in enumerate(tokens)
    ]
    return Words(tokens, roles, secondary)


def map_of(words: Words) -> gr.VocabularyMap:
    return gr.VocabularyMap(words.tokens, words.roles, words.secondary)


@settings(max_examples=200, deadline=None)
@given(words=vocabularies(3), text=st.lists(st.sampled_from(PARTS), max_size=4).map(b"".join))
def test_images_and_segmentations_by_search(words: Words, text: bytes) -> None:
    vocabulary_map = map_of(words)
    for source, own in enumerate(words.tokens):
        for target in range(3):
            for token in range(len(own)):
                if source != target:
                    want = words.image(source, target, token)
                    assert vocabulary_map.image(source, target, token) == want
        best = words.best(source, text)
        assert vocabulary_map.segment(source, text) == best
        assert best is not None
        assert vocabulary_map.writes(source, best, text)
        assert not vocabulary_map.writes(source, best, text + b"a")
        assert not vocabulary_map.writes(source, [*best, words.roles[0][source]], text)


class Ledger(RuleBasedStateMachine):
    """Every call goes to both; ids, spans and counts must agree."""

    @initialize(words=st.one_of(vocabularies(2), vocabularies(3)))
    def begin(self, words: Words) -> None:
        self.words = words
        self.ledger = gr.TokenLedger(map_of(words))
        self.model = LedgerModel(words)

    def models(self) -> st.SearchStrategy[int]:
        return st.integers(0, len(self.words.tokens) - 1)

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        model = data.draw(self.models(), label="model")
        tokens = st.integers(0, len(self.words.tokens[model]) - 1)
        ids = data.draw(st.lists(tokens, min_size=1, max_size=5), label="ids")
        if not all(self.words.expressible(model, token) for token in ids):
            with pytest.raises(ValueError, match="has no counterpart"):
                self.ledger.append(model, ids)
            return
        self.ledger.append(model, ids)
        self.model.append(model, ids)

    @rule(data=st.data())
    def resolve(self, data: st.DataObject) -> None:
        model = data.draw(self.models(), label="model")
        chosen = [self.tokenize(data, model, span) for span in self.model.spans(model)]
        for wrong in ([*chosen, [0]], chosen[:-1], [[*ids, 0] for ids in chosen]):
            if wrong != chosen:
                with pytest.raises(ValueError, match="pending span"):
                    self.ledger.resolve(model, wrong)
        assert self.ledger.resolve(model, chosen) == self.model.resolve(model, chosen)
        assert self.ledger.caught_up(model)

    def tokenize(self, data: st.DataObject, model: int, text: bytes) -> list[int]:
        """Any tokens that write a text."""
        ids = []
        while text:
            ids.append(data.draw(st.sampled_from(self.words.beginnings(model, text)), label="id"))
            text = text[len(self.words.text(model, ids[-1]) or b"") :]
        return ids

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(-1, len(self.model.written) + 1), label="size")
        if not 0 <= size <= len(self.model.written):
            with pytest.raises(ValueError, match="cannot truncate"):
                self.ledger.truncate(size)
            return
        assert self.ledger.truncate(size) == self.model.truncate(size)

    @precondition(lambda self: hasattr(self, "model"))
    @rule(saved=st.booleans(), writes=st.booleans())
    def leave(self, saved: bool, writes: bool) -> None:
        """Goes on with a copy; what happens to the one that was left does not touch it."""
        left = self.ledger
        if saved:
            self.ledger = gr.TokenLedger.load(left.save(), map_of(self.words))
            assert self.ledger.save() == left.save()
        else:
            self.ledger = left.copy()
        left.truncate(0)
        if writes:
            left.append(0, [self.words.roles[0][0]])

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def same_state(self) -> None:
        assert len(self.ledger) == len(self.model.written)
        for model in range(len(self.words.tokens)):
            ids = self.model.ids(model)
            assert self.ledger.ids(model) == ids
            assert self.ledger.count(model) == len(ids)
            assert self.ledger.ids(model, len(ids) // 2) == ids[len(ids) // 2 :]
            assert self.ledger.pending_spans(model) == self.model.spans(model)
            assert self.ledger.retokenized(model) == self.model.retokenized[model]
            covered = self.model.covered(model)
            assert self.ledger.caught_up(model) == (covered == len(self.model.written))
            # The list reads as what was written, however it was tokenized.
            written = [self.model.text(i) for i in range(covered)]
            own = [self.words.text(model, token) for token in ids]
            assert joined(own) == joined(written)


def joined(texts: list[bytes | None]) -> list[bytes]:
    """The texts between tokens with a role, which stand for each other."""
    runs = [b""]
    for text in texts:
        if text is None:
            runs.append(b"")
        else:
            runs[-1] += text
    return runs


Ledger.TestCase.settings = settings(
    max_examples=STEPS // STEPS_A_RUN,
    stateful_step_count=STEPS_A_RUN,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLedgerAgainstModel = Ledger.TestCase


@pytest.mark.parametrize("character", ["é", "数", "🜁"])
def test_a_span_begins_with_a_whole_character(character: str) -> None:
    """All bytes but the last have images; the last comes in one token with a letter."""
    data = character.encode()
    single = [data[i : i + 1] for i in range(len(data))]
    last = len(single) - 1
    words: list[list[bytes | None]] = [[*single, b"a", data[-1:] + b"a"], [*single, b"a"]]
    ledger = gr.TokenLedger(gr.VocabularyMap(words, []))
    ledger.append(0, [last + 1, *range(last)])
    assert ledger.ids(1) == [last + 1, *range(last)]
    ledger.append(0, [last + 2])
    assert ledger.pending_spans(1) == [data + b"a"]
    assert ledger.resolve(1, [[*range(last + 1), last + 1]]) == 1
    assert ledger.ids(1) == [last + 1, *range(last + 1), last + 1]
    assert ledger.truncate(last + 1) == [(last + 1, 0), (1, last + 2)]
    assert ledger.ids(1) == [last + 1, *range(last)]


def test_one_list_without_a_map() -> None:
    ledger = gr.TokenLedger()
    ledger.append(0, [1, 2])
    ledger.append(1, [3])
    assert ledger.ids(0) == ledger.ids(1) == [1, 2, 3]
    assert ledger.caught_up(1)
    assert ledger.pending_spans(1) == []
    assert ledger.resolve(1, []) == 3
    assert ledger.truncate(1) == [(1, 0)]
    assert ledger.ids(0) == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[b"a"]], []), "at least two vocabularies"),
        (([[b"a"], [b"a"]], [[0]]), "one id a vocabulary"),
        (([[b"a"], [b"a"]], [[0, 1]]), "roles holds 1, outside vocabulary 1 of 1 ids"),
        (([[b"a"], [b"a"]], [], [[], [5]]), "secondary_ids holds 5"),
        (([[b"a"], [b"a"]], [], [[], [], []]), "one list a vocabulary"),
        (
            ([[b"a", b"a\n\xc3"], [b"a", b"\n"]], []),
            r'token 1 of vocabulary 0 writes "a\\x0A\\xC3", which vocabulary 1 cannot write',
        ),
    ],
)
def test_bad_map(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gr.VocabularyMap(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ledger: ledger.append(2, [0]), "model must lie in"),
        (lambda ledger: ledger.append(0, [9]), "lies outside vocabulary 0"),
        (lambda ledger: ledger.append(0, [1]), "token 1 of vocabulary 0 has no counterpart"),
        (lambda ledger: ledger.ids(-1), "model must lie in"),
        (lambda ledger: ledger.ids(0, 3), "start must lie in"),
        (lambda ledger: ledger.resolve(0, [[0]]), "has 0 pending spans, got ids for 1"),
    ],
)
def test_bad_ledger_calls(call: Any, message: str) -> None:
    ledger = gr.TokenLedger(gr.VocabularyMap([[b"a", None], [b"a"]], []))
    ledger.append(0, [0])
    with pytest.raises(ValueError, match=message):
        call(ledger)
    assert ledger.ids(0) == ledger.ids(1) == [0]


LETTERS = Words([[b"a", b"b", b"ab"], [b"b", b"a"]], [], [[], []])


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign"])
def test_damaged_bytes_are_refused(damage: str) -> None:
    ledger = gr.TokenLedger(map_of(LETTERS))
    ledger.append(0, [0, 1, 2])
    saved = ledger.save()
    for place in range(0, len(saved), 3):
        flipped = bytearray(saved)
        flipped[place] ^= 4
        broken = {"cut": saved[:place], "flip": bytes(flipped), "foreign": b"x" * place}[damage]
        with pytest.raises(ValueError, match=r"save\(\)|damaged"):
            gr.TokenLedger.load(broken, map_of(LETTERS))


@pytest.mark.parametrize("bad", [2, -1, 2 * 10**9])
def test_saved_ids_outside_the_vocabulary(bad: int) -> None:
    """Of a model's own list, in whole bytes with a valid checksum."""
    ledger = gr.TokenLedger(map_of(LETTERS))
    ledger.append(0, [0, 1, 0, 1])
    saved = ledger.save()
    assert gr.TokenLedger.load(with_checksum(saved), map_of(LETTERS)).ids(1) == [1, 0, 1, 0]
    before, after = (np.array([1, 0, 1, last], np.int32).tobytes() for last in (0, bad))
    assert saved.count(before) == 1
    forged = with_checksum(saved.replace(before, after))
    with pytest.raises(ValueError, match=rf"holds {bad}, outside vocabulary 1 of 2 ids"):
        gr.TokenLedger.load(forged, map_of(LETTERS))


def test_saved_with_another_map() -> None:
    saved = gr.TokenLedger(map_of(LETTERS)).save()
    with pytest.raises(ValueError, match="other vocabularies"):
        gr.TokenLedger.load(saved)
    with pytest.raises(ValueError, match="other vocabularies"):
        gr.TokenLedger.load(gr.TokenLedger().save(), map_of(LETTERS))
