"""The paged KV cache of two models with different vocabularies, against its plain model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

import glimprouter as gr
from kv_model import CacheModel
from kv_rules import LAYOUTS, MAX_SEQUENCES, STEPS, STEPS_A_RUN, Cache, ids
from ledger_model import LedgerModel, Words
from saved_bytes import with_checksum

# A character of two bytes and one of three, whole and in parts; the last two ids have roles.
WORDS = Words(
    [
        [b"a", b"b", b"\xc3", b"\xa9", b"\xe6", b"\x95", b"\xb0", b"ab", b"\x95\xb0", None, None],
        [None, b"\xb0", b"\x95", b"\xe6", b"ba", b"\xc3\xa9", b"\xa9", b"\xc3", b"b", b"a", None],
    ],
    [[9, 0], [10, 10]],
    [[], []],
)


def vocabulary_map() -> gr.VocabularyMap:
    return gr.VocabularyMap(WORDS.tokens, WORDS.roles, WORDS.secondary)


vocabulary_ids = st.lists(st.integers(0, 10), min_size=1, max_size=9)


class MappedCache(Cache):
    """Either model writes; a model has tokens of its own for what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = gr.KvCache(self.pools, MAX_SEQUENCES, vocabulary_map())
        self.model = CacheModel([layout.page_size for layout in LAYOUTS], WORDS)

    @rule(small=vocabulary_ids, large=vocabulary_ids)
    def open(self, small: list[int], large: list[int]) -> None:
        super().open(small, large)

    def write(self, data: st.DataObject, sequence: int) -> None:
        writer = data.draw(st.integers(0, 1), label="writer")
        some = data.draw(vocabulary_ids, label="ids")
        self.cache.append(writer, sequence, some)
        self.model.sequences[sequence].ledger.append(writer, some)

    def resolve_one(self, model: int, sequence: int) -> None:
        ledger = self.model.sequences[sequence].ledger
        assert isinstance(ledger, LedgerModel)
        spans = ledger.spans(model)
        assert self.cache.pending_spans(model, sequence) == spans
        best = [WORDS.best(model, span) or [] for span in spans]
        self.cache.resolve(model, sequence, best)
        self.model.resolve(model, sequence, best)

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), more=ids)
    def append(self, data: st.DataObject, more: list[int]) -> None:
        self.write(data, self.pick(data))

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), model=st.integers(0, 1))
    def prepare(self, data: st.DataObject, model: int) -> None:
        for sequence in self.idle():
            if not self.model.sequences[sequence].caught_up(model):
                with pytest.raises(ValueError, match=r"has no tokens for; call resolve\(\)"):
                    self.cache.prepare(model, [sequence])
            self.resolve_one(model, sequence)
        super().prepare(data, model)

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), more=ids, model=st.integers(0, 1))
    def extend(self, data: st.DataObject, more: list[int], model: int) -> None:
        sequence = self.pick(data)
        self.write(data, sequence)
        self.resolve_one(model, sequence)
        cached = self.model.sequences[sequence]
        ends = self.model.ends(model, [sequence])
        wanted = self.model.pages_wanted(model, [sequence], ends)
        if cached.committed[model] < cached.length(model) and wanted <= self.pools[model].available(
            model
        ):
            batch = self.cache.prepare(model, [sequence])
            self.model.prepare(model, [sequence], ends)
            self.write_and_land(batch, True, data)

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), model=st.integers(0, 1))
    def resolve(self, data: st.DataObject, model: int) -> None:
        self.resolve_one(model, self.pick(data))


MappedCache.TestCase.settings = settings(
    max_examples=STEPS // STEPS_A_RUN,
    stateful_step_count=STEPS_A_RUN,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestMappedCacheAgainstModel = MappedCache.TestCase


def computed(cache: gr.KvCache, model: int, sequence: int) -> None:
    cache.complete(cache.prepare(model, [sequence]))


def test_a_character_across_a_hand_off_is_computed_again() -> None:
    """Model 1 has computed a character's first byte when model 0 writes the rest as one token."""
    pool = gr.PagePool(LAYOUTS, arena_bytes=8 * 3072, sector_bytes=3072)
    cache = gr.KvCache(pool, 1, vocabulary_map())
    sequence = cache.open([[1], [1, 2]])
    cache.append(0, sequence, [0, 4])  # "a" and the first byte of three
    computed(cache, 1, sequence)
    assert cache.generated(1, sequence) == [9, 3]
    cache.append(0, sequence, [8])
    assert cache.pending_spans(1, sequence) == ["数".encode()]
    cache.resolve(1, sequence, [[3, 2, 1]])
    assert cache.generated(1, sequence) == [9, 3, 2, 1]
    assert (cache.num_computed_tokens(1, sequence), cache.excess(1, sequence)) == (3, 1)
    assert cache.retokenized(1, sequence) == 3
    assert cache.excess(0, sequence) == 0
    batch = cache.prepare(1, [sequence])
    assert batch.ids.tolist() == [3, 2, 1]
    cache.complete(batch)
    cache.truncate(sequence, 2)  # into the span: model 1 goes back to "a"
    assert cache.generated(1, sequence) == [9, 3]
    assert (cache.num_computed_tokens(1, sequence), cache.excess(1, sequence)) == (3, 4)
    cache.check_invariants()


@pytest.mark.parametrize("other", [None, "map"])
def test_saved_with_another_map(other: Any) -> None:
    pool = gr.PagePool(LAYOUTS, arena_bytes=8 * 3072, sector_bytes=3072)
    cache = gr.KvCache(pool, 1, vocabulary_map())
    sequence = cache.open([[1], [1]])
    cache.append(0, sequence, [0, 7])
    saved = cache.save(sequence)
    if other == "map":
        other = gr.VocabularyMap(WORDS.tokens, WORDS.roles[:1])
    with pytest.raises(ValueError, match="other vocabularies"):
        gr.KvCache(pool, 1, other).load(saved)
    loaded = gr.KvCache(pool, 1, vocabulary_map()).load(saved)
    assert loaded == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda cache: cache.open([[1, 11], [1]]),
            ValueError,
            "a prompt holds 11, outside vocabulary 0 of 11 ids",
        ),
        (lambda cache: cache.open([[1], [-1]]), ValueError, "holds -1, outside vocabulary 1"),
        (lambda cache: cache.open([[2 * 10**9]] * 2), ValueError, "holds 2000000000, outside"),
        (lambda cache: cache.append(0, 0, [11]), ValueError, "outside vocabulary 0"),
        (lambda cache: cache.append(2, 0, [0]), ValueError, "model must lie in"),
        (lambda cache: cache.resolve(2, 0, []), ValueError, "model must lie in"),
        (lambda cache: cache.resolve(1, 0, []), ValueError, "has 1 pending spans"),
        (lambda cache: cache.resolve(1, 0, [[9]]), ValueError, "do not write its text"),
        (lambda cache: cache.resolve(1, 3, []), IndexError, "is not open"),
        (lambda cache: cache.pending_spans(-1, 0), ValueError, "model must lie in"),
        (lambda cache: cache.prepare(1, [0]), ValueError, r"call resolve\(\)"),
    ],
)
def test_bad_calls_change_nothing(call: Any, error: type[Exception], message: str) -> None:
    pool = gr.PagePool(LAYOUTS, arena_bytes=8 * 3072, sector_bytes=3072)
    cache = gr.KvCache(pool, 2, vocabulary_map())
    sequence = cache.open([[1], [1]])
    cache.append(0, sequence, [0, 7])
    saved = cache.save(sequence)
    with pytest.raises(error, match=message):
        call(cache)
    assert cache.sequences == [sequence]
    assert cache.save(sequence) == saved


@pytest.mark.parametrize("model", [0, 1])
@pytest.mark.parametrize("bad", [11, -1, 2 * 10**9])
def test_a_saved_prompt_outside_the_vocabulary(model: int, bad: int) -> None:
    """Whole bytes with a valid checksum, which no cache with this map has written."""
    pool = gr.PagePool(LAYOUTS, arena_bytes=8 * 3072, sector_bytes=3072)
    cache = gr.KvCache(pool, 2, vocabulary_map())
    prompts = [[5, 7, 6, 5], [3, 8, 4, 3]]
    saved = cache.save(cache.open(prompts))
    before, after = (
        np.array([*prompts[model][:3], last], np.int32) for last in (prompts[model][3], bad)
    )
    assert saved.count(before.tobytes()) == 1
    forged = with_checksum(saved.replace(before.tobytes(), after.tobytes()))
    for read in (cache.load, cache.check_saved):
        with pytest.raises(
            ValueError, match=rf"saved sequence holds {bad}, outside vocabulary {model} of 11 ids"
        ):
            read(forged)
    assert cache.sequences == [0]
    assert cache.load(with_checksum(saved)) == 1


def test_a_map_of_another_number_of_models() -> None:
    pool = gr.PagePool(LAYOUTS[:1], arena_bytes=8 * 3072, sector_bytes=3072)
    with pytest.raises(ValueError, match="2 vocabularies, the pool has 1 models"):
        gr.KvCache(pool, 1, vocabulary_map())
