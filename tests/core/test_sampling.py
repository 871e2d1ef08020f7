"""Token selection against float64: kept sets, exact draws, frequencies, edges, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import glimprouter as gr
from glimprouter import _C
from reference.containers import as_numpy
from reference.philox import philox4x32_10, uniform_double
from reference.rows import hostile_rows, normal_rows, peaked_rows
from reference.selection import Filters, InverseCdf, keep, token_probabilities

pytestmark = pytest.mark.emulator

# A kept set must equal float64's unless float64 itself decided by less than this relative margin.
DECISION_MARGIN = 1e-7

MODES: dict[str, Filters] = {
    "temperature_1": Filters(),
    "temperature_0.6": Filters(temperature=0.6),
    "temperature_1.7": Filters(temperature=1.7),
    "top_p": Filters(top_p=0.9),
    "published": Filters(temperature=0.6, top_p=0.95),
    "top_k": Filters(top_k=20),
    "min_p": Filters(min_p=0.02),
    "all": Filters(temperature=0.8, top_k=50, top_p=0.97, min_p=0.01),
    "hot": Filters(temperature=2.5, top_p=0.99),
}


def sample(
    row: NDArray[Any],
    filters: Filters,
    count: int,
    *,
    seed: int = 0,
    substream: Any = 0,
    purpose: int = 0,
) -> NDArray[Any]:
    """Draws `count` tokens from one row [V], at positions 0 .. count - 1."""
    logits = np.broadcast_to(row, (count, row.size))  # a row stride of 0: nothing is copied
    tokens = gr.sample(
        logits,
        temperature=filters.temperature,
        top_p=filters.top_p,
        top_k=filters.top_k,
        min_p=filters.min_p,
        seed=seed,
        substream=substream,
        position=np.arange(count),
        purpose=purpose,
    )
    return as_numpy(tokens)


def nucleus(row: NDArray[Any], filters: Filters) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the kept ids in sorted order and their renormalised probabilities."""
    ids, probabilities = _C.nucleus(
        row, filters.temperature, filters.top_p, filters.top_k, filters.min_p
    )
    return as_numpy(ids), as_numpy(probabilities)


def chi_square_p_value(tokens: NDArray[Any], probabilities: NDArray[Any], bins: int) -> float:
    """P-value of a chi-square test over at most `bins` runs of ids of about equal probability."""
    assert (probabilities[tokens] > 0.0).all(), "a token of probability 0 was drawn"
    edges = np.minimum((np.cumsum(probabilities) * bins).astype(np.int64), bins - 1)
    want = np.bincount(edges, weights=probabilities, minlength=bins) * tokens.size
    got = np.bincount(edges[tokens], minlength=bins)
    used = want > 0.0
    assert used.sum() > 1, "one bin tests nothing"
    return float(stats.chisquare(got[used], want[used] * (tokens.size / want.sum())).pvalue)


def transformers_probabilities(row: NDArray[Any], filters: Filters) -> NDArray[Any]:
    """Returns what transformers' own processors leave of a row, in float64."""
    scores = torch.from_numpy(row.astype(np.float64))[None]
    ids = torch.zeros(1, 1, dtype=torch.long)
    warpers: list[Any] = [TemperatureLogitsWarper(filters.temperature)]
    if filters.top_k:
        warpers.append(TopKLogitsWarper(filters.top_k))
    if filters.top_p < 1.0:
        warpers.append(TopPLogitsWarper(filters.top_p))
    if filters.min_p:
        warpers.append(MinPLogitsWarper(filters.min_p))
    for warper in warpers:
        scores = warper(ids, scores)
    return np.asarray(torch.softmax(scores, dim=-1)[0].numpy())


@pytest.mark.parametrize("mode", MODES)
def test_the_reference_agrees_with_transformers(mode: str) -> None:
    """Where no two logits are equal, so that the ways to break ties do not matter."""
    for seed in range(5):
        row = np.unique(normal_rows(1, 400, seed)[0])[:302]
        np.random.default_rng(seed).shuffle(row)
        assert keep(row, MODES[mode]).margin > 1e-9
        np.testing.assert_allclose(
            token_probabilities(row, MODES[mode]),
            transformers_probabilities(row, MODES[mode]),
            rtol=1e-9,
        )


@pytest.mark.parametrize("mode", MODES)
def test_kept_sets_equal_a_float64_sort(mode: str) -> None:
    """Includes rows full of ties; rows that float64 itself decides by a hair are counted."""
    filters = MODES[mode]
    rows: dict[str, NDArray[Any]] = {}
    for vocabulary in (1, 2, 302, 2048, 2049, 5001):
        for seed in range(4):
            rows[f"normal {vocabulary} {seed}"] = normal_rows(1, vocabulary, seed)[0]
            rows[f"ties {vocabulary} {seed}"] = np.round(normal_rows(1, vocabulary, seed)[0])
        for name, row in hostile_rows(vocabulary, vocabulary).items():
            rows[f"{name} {vocabulary}"] = row
    rows["normal 151936"] = normal_rows(1, 151_936, 1)[0]
    rows["peaked 151936"] = peaked_rows(1, 151_936, 1)[0]
    rows["ties 151936"] = np.round(normal_rows(1, 151_936, 1)[0] * 4) / 4
    close_calls = 0
    for name, row in rows.items():
        want = keep(row, filters)
        if want.margin < DECISION_MARGIN:
            close_calls += 1
            continue
        assert_same_set(row, filters, name)
    print(f"{mode}: {len(rows)} rows, {close_calls} excluded as close calls")
    assert close_calls <= 0.15 * len(rows)


def assert_same_set(row: NDArray[Any], filters: Filters, name: str) -> None:
    """Compares ids (order included) and probabilities of the kept set with float64.

    Only tokens below 2^-40 of the largest probability may be missing: those are never drawn.
    """
    want = keep(row, filters)
    ids, probabilities = nucleus(row, filters)
    assert (want.probabilities[ids.size :] <= 2.0**-40).all(), name
    np.testing.assert_array_equal(ids, want.ids[: ids.size], err_msg=name)
    np.testing.assert_allclose(
        probabilities, want.probabilities[: ids.size], rtol=2e-5, atol=1e-12, err_msg=name
    )


@pytest.mark.parametrize("vocabulary", [302, 2048, 151_936])
@pytest.mark.parametrize("top_p", [0.1, 0.25, 0.5, 0.75, 0.999])
def test_top_p_of_a_uniform_row_is_exact(vocabulary: int, top_p: float) -> None:
    """Every candidate ties: the kept set is the lowest ids, as many as the mass asks for."""
    row = np.full(vocabulary, 2.5, np.float32)
    ids, probabilities = nucleus(row, Filters(top_p=top_p))
    assert ids.size == int(np.ceil(top_p * vocabulary))  # weights of 1 add without rounding
    np.testing.assert_array_equal(ids, np.arange(ids.size))
    np.testing.assert_allclose(probabilities, 1.0 / ids.size, rtol=1e-5)


@pytest.mark.parametrize("min_p", [0.01, 0.25, 0.9])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_min_p_keeps_what_lies_a_hair_above_and_drops_what_lies_below(
    min_p: float, temperature: float
) -> None:
    edge = temperature * np.log(min_p)
    for hair in (3e-6, 1e-4, 1e-2):
        row = np.array([edge + hair, 0.0, edge - hair, edge - 1.0], dtype=np.float32)
        kept = nucleus(row, Filters(temperature=temperature, min_p=min_p))[0]
        assert kept.tolist() == [1, 0], f"{hair} nats from the edge"
    ties = np.array([2.0, 1.9, 2.0, 2.0], dtype=np.float32)
    assert nucleus(ties, Filters(min_p=1.0))[0].tolist() == [0, 2, 3]


@pytest.mark.parametrize("k", [1, 2, 19, 20, 21, 301, 302, 303, 10_000])
def test_top_k_keeps_exactly_k_and_breaks_ties_by_lower_id(k: int) -> None:
    row = np.round(normal_rows(1, 302, 7)[0] / 2)
    ids, _ = nucleus(row, Filters(top_k=k))
    order = sorted(range(302), key=lambda token: (-row[token], token))
    assert ids.tolist() == order[:k]


def test_filters_apply_in_the_order_of_transformers() -> None:
    """p = .4 .3 .2 .1: top-k 3 first renormalises to .444 .333 .222, so top-p .75 keeps two."""
    row = np.log(np.array([0.1, 0.4, 0.2, 0.3])).astype(np.float32)
    assert nucleus(row, Filters(top_p=0.75))[0].tolist() == [1, 3, 2]
    assert nucleus(row, Filters(top_k=3, top_p=0.75))[0].tolist() == [1, 3]
    # min-p compares with the largest probability: 0.6 x 0.4 = 0.24 drops 0.2.
    assert nucleus(row, Filters(min_p=0.6))[0].tolist() == [1, 3]
    assert nucleus(row, Filters(top_p=0.95, min_p=0.6))[0].tolist() == [1, 3]


def test_philox_known_answers() -> None:
    """The vectors that the authors of Philox published with their Random123 library."""
    ones = 0xFFFFFFFF
    assert philox4x32_10((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox4x32_10((ones,) * 4, (ones,) * 2) == (
        *(0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    )
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox4x32_10(pi, (0xA4093822, 0x299F31D0)) == (
        *(0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    )


def rows_to_draw_from(vocabulary: int, filters: Filters) -> dict[str, NDArray[np.float32]]:
    """Rows by name; of the largest vocabulary three whose kept set float64 decides clearly."""
    if vocabulary < 100_000:
        return {"normal": normal_rows(1, vocabulary, 19)[0]} | hostile_rows(vocabulary, 20)
    rows: dict[str, NDArray[np.float32]] = {}
    for seed in range(20):
        row = normal_rows(1, vocabulary, seed)[0]
        if len(rows) < 3 and keep(row, filters).margin > DECISION_MARGIN:
            rows[f"normal {seed}"] = row
    return rows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vocabulary", [1, 302, 2049, 20_011, 151_936])
def test_every_draw_is_the_inverse_cdf_at_its_documented_uniform(
    mode: str, vocabulary: int
) -> None:
    """Token for token, unless float64 has u within 1e-7 of the edge of its token's interval."""
    count, close_calls, draws = 60, 0, 0
    for index, (name, row) in enumerate(rows_to_draw_from(vocabulary, MODES[mode]).items()):
        draws += count
        inverse = InverseCdf(row, MODES[mode])
        if inverse.margin < DECISION_MARGIN:
            close_calls += count
            continue
        purpose = (0, 1, (1 << 32) - 1)[index % 3]
        tokens = sample(row, MODES[mode], count, seed=1 << 40, substream=index, purpose=purpose)
        for position, token in enumerate(tokens):
            want, margin = inverse.draw(uniform_double(1 << 40, index, position, purpose))
            close_calls += margin < DECISION_MARGIN
            assert token == want or margin < DECISION_MARGIN, f"{name} at position {position}"
    print(f"{mode}, V={vocabulary}: {draws} draws, {close_calls} excluded as close calls")
    assert close_calls <= 0.2 * draws


@pytest.mark.many_rows
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", ["normal", "uniform", "peaked", "ties", "masked"])
def test_frequencies_over_302_tokens(mode: str, shape: str) -> None:
    row = {
        "normal": normal_rows(1, 302, 21)[0],
        "uniform": np.zeros(302, np.float32),
        "peaked": peaked_rows(1, 302, 21, peak=7.5)[0],
        "ties": np.round(normal_rows(1, 302, 22)[0]),
        "masked": hostile_rows(302, 23)["masked"],
    }[shape]
    tokens = sample(row, MODES[mode], 6000, seed=5)
    assert chi_square_p_value(tokens, token_probabilities(row, MODES[mode]), bins=48) > 1e-4


@pytest.mark.many_rows
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", ["normal", "uniform"])
def test_frequencies_over_151936_tokens(mode: str, shape: str) -> None:
    row = normal_rows(1, 151_936, 31)[0] if shape == "normal" else np.zeros(151_936, np.float32)
    tokens = sample(row, MODES[mode], 1000, seed=6)
    assert chi_square_p_value(tokens, token_probabilities(row, MODES[mode]), bins=16) > 1e-4


@pytest.mark.many_rows
@pytest.mark.parametrize("varied", ["seed", "substream", "position"])
def test_draws_differ_and_are_independent_along_each_part_of_the_key(varied: str) -> None:
    """Neighbours in the key: their joint distribution over four quarters is the product."""
    count = 4000
    logits = np.zeros((count, 4096), np.float32)
    index = np.arange(count)
    if varied == "seed":
        parts = [as_numpy(gr.sample(logits[:4], temperature=1.0, seed=s)) for s in range(1000)]
        tokens = np.stack(parts)[:, 0]
    elif varied == "substream":
        tokens = as_numpy(gr.sample(logits, temperature=1.0, seed=9, substream=index, position=3))
    else:
        tokens = as_numpy(gr.sample(logits, temperature=1.0, seed=9, substream=3, position=index))
    quarters = tokens // 1024
    joint = np.bincount(quarters[:-1] * 4 + quarters[1:], minlength=16)[:16]
    assert stats.chisquare(joint).pvalue > 1e-4
    assert stats.chisquare(np.bincount(tokens // 128, minlength=32)).pvalue > 1e-4


def test_the_key_alone_decides() -> None:
    """Same key, same token, wherever the row stands; every part of the key matters."""
    rows = normal_rows(16, 302, 3)
    logits = np.concatenate([rows, rows[::-1]])
    streams = np.concatenate([np.arange(16), np.arange(16)[::-1]])
    tokens = as_numpy(gr.sample(logits, temperature=1.0, seed=4, substream=streams, position=7))
    np.testing.assert_array_equal(tokens[:16], tokens[:15:-1])
    others: tuple[dict[str, Any], ...] = (
        {"seed": 5},
        {"substream": streams + 100},
        {"position": 8},
        {"purpose": 1},
    )
    for changed in others:
        key: dict[str, Any] = {"seed": 4, "substream": streams, "position": 7, **changed}
        assert (as_numpy(gr.sample(logits, temperature=1.0, **key)) != tokens).any()


def test_keys_of_the_full_64_bits() -> None:
    row = np.zeros((1, 4096), np.float32)
    drawn = {
        int(
            as_numpy(
                gr.sample(row, temperature=1.0, seed=seed, substream=substream, position=position)
            )[0]
        )
        for seed in (0, 1 << 32, (1 << 64) - 1)
        for substream in (0, 1 << 32, (1 << 63) - 1)
        for position in (0, 1 << 32)
    }
    assert len(drawn) >= 16  # 18 keys into 4096 tokens; a dropped high word would leave 9 or fewer


@pytest.mark.parametrize("vocabulary", [1, 302, 2049, 151_936])
def test_temperature_zero_is_greedy_and_the_lowest_id_wins(vocabulary: int) -> None:
    for name, row in hostile_rows(vocabulary, 41).items():
        token = int(as_numpy(gr.sample(row[None], temperature=0.0))[0])
        assert token == int(np.argmax(row)), name
        ids, probabilities = nucleus(row, Filters(temperature=0.0))
        assert (ids.tolist(), probabilities.tolist()) == ([token], [1.0]), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vocabulary", [1, 2, 302, 2049])
def test_a_masked_token_is_never_drawn(mode: str, vocabulary: int) -> None:
    for name, row in hostile_rows(vocabulary, 51).items():
        tokens = sample(row, MODES[mode], 50, seed=7)
        assert np.isfinite(row[tokens]).all(), name
        drawable = token_probabilities(row, MODES[mode]) > 0.0
        if keep(row, MODES[mode]).margin > DECISION_MARGIN:
            assert drawable[tokens].all(), name


@pytest.mark.parametrize("temperature", [1e-3, 1e-2, 100.0, 1e4])
def test_extreme_temperatures(temperature: float) -> None:
    row = normal_rows(1, 302, 61)[0]
    filters = Filters(temperature=temperature)
    tokens = sample(row, filters, 2000, seed=8)
    probabilities = token_probabilities(row, filters)
    if probabilities.max() > 1.0 - 1e-9:
        assert (tokens == np.argmax(row)).all()
    else:
        assert chi_square_p_value(tokens, probabilities, bins=32) > 1e-4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", -0.5),
        ("top_p", 1.5),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("min_p", float("nan")),
    ],
)
def test_parameters_outside_their_range(name: str, value: float) -> None:
    arguments: dict[str, Any] = {"temperature": 1.0, name: value}
    with pytest.raises(ValueError, match=name):
        gr.sample(np.zeros((1, 302), np.float32), **arguments)


@pytest.mark.parametrize("name", ["substream", "position"])
@pytest.mark.parametrize("length", [0, 2, 4])
def test_a_key_for_another_number_of_rows(name: str, length: int) -> None:
    key: dict[str, Any] = {name: np.zeros(length, dtype=np.int64)}
    with pytest.raises(ValueError, match=name):
        gr.sample(np.zeros((3, 302), np.float32), temperature=1.0, **key)


@pytest.mark.parametrize("value", [-1, 1 << 32, 0.5, True, "1"])
def test_a_purpose_outside_32_bits(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="purpose"):
        gr.sample(np.zeros((3, 302), np.float32), temperature=1.0, purpose=value)


@pytest.mark.parametrize("name", ["seed", "substream", "position"])
@pytest.mark.parametrize("value", [-1, 1 << 64, 0.5, "1", np.array([-1, 0, 1])])
def test_keys_outside_64_bits(name: str, value: Any) -> None:
    key: dict[str, Any] = {name: value}
    with pytest.raises((TypeError, ValueError), match=name):
        gr.sample(np.zeros((3, 302), np.float32), temperature=1.0, **key)
