"""`gr.glimpse` against the float64 reference: accuracy, hostile rows, frameworks, errors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import glimprouter as gr
from reference import statistics as expected
from reference.containers import DlpackOnly, as_numpy, bits
from reference.rows import hostile_rows, normal_rows, peaked_rows

pytestmark = pytest.mark.emulator

ENTROPY_BOUND = 2e-6  # times max(1, H): the promise of the arithmetic specification
FIELDS = ("entropy", "logsumexp", "max_prob", "margin", "token", "status")
VOCABULARIES = (1, 2, 3, 302, 2047, 2048, 2049, 4097, 151_936, 262_144)
NUMPY_DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}


def rounding_of_a_sum(value: float) -> float:
    """Bound for logsumexp = max + ln s: the entropy's bound and the rounding of the sum itself."""
    return ENTROPY_BOUND * max(1.0, abs(value))


def assert_matches_reference(rows: NDArray[Any], glimpse: Any, label: str = "") -> None:
    """Compares every field of a glimpse over rows [B, V] with the float64 reference."""
    got = {field: as_numpy(getattr(glimpse, field)) for field in FIELDS}
    for index, row in enumerate(rows):
        want = expected.row_statistics(row)
        where = f"{label} row {index} of V={row.size}"
        assert int(got["status"][index]) == want.status, where
        assert int(got["token"][index]) == want.token, where
        if want.status != expected.STATUS_OK:
            for field in ("entropy", "logsumexp", "max_prob", "margin"):
                assert np.isnan(got[field][index]), f"{where}: {field}"
            continue
        entropy_error = abs(float(got["entropy"][index]) - want.entropy)
        assert entropy_error <= ENTROPY_BOUND * max(1.0, want.entropy), where
        logsumexp_error = abs(float(got["logsumexp"][index]) - want.logsumexp)
        assert logsumexp_error <= rounding_of_a_sum(want.logsumexp), where
        assert got["max_prob"][index] == pytest.approx(want.max_prob, rel=2e-6), where
        assert got["margin"][index] == pytest.approx(want.margin, rel=2e-6, abs=2e-6), where


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_ordinary_rows_match_float64(vocabulary: int) -> None:
    rows = np.concatenate([normal_rows(3, vocabulary, 5), peaked_rows(3, vocabulary, 6)])
    assert_matches_reference(rows, gr.glimpse(rows))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_hostile_rows_match_float64(vocabulary: int) -> None:
    by_name = hostile_rows(vocabulary, seed=vocabulary)
    for name, row in by_name.items():
        assert_matches_reference(row[None], gr.glimpse(row[None]), name)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("vocabulary", [302, 5001, 151_936])
def test_narrow_types_match_float64_of_their_own_values(dtype: str, vocabulary: int) -> None:
    rows = np.stack([normal_rows(1, vocabulary, 1)[0], peaked_rows(1, vocabulary, 2)[0]])
    rows = rows.astype(NUMPY_DTYPES[dtype])
    assert_matches_reference(rows, gr.glimpse(rows), dtype)


@pytest.mark.many_rows
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_16_bit_pattern_is_converted_exactly(dtype: str) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16).view(NUMPY_DTYPES[dtype])
    finite = patterns[np.isfinite(patterns.astype(np.float32))]
    # Pairs (value, 0): the argmax, and the probability that both types must agree on.
    pairs = np.stack([finite, np.zeros_like(finite)], axis=1)
    narrow, wide = gr.glimpse(pairs), gr.glimpse(pairs.astype(np.float32))
    for field in FIELDS:
        np.testing.assert_array_equal(bits(getattr(narrow, field)), bits(getattr(wide, field)))
    np.testing.assert_array_equal(
        as_numpy(narrow.token), np.argmax(pairs.astype(np.float32), axis=1)
    )


def test_entropy_near_zero_keeps_its_digits() -> None:
    """H = ln s - t/s has two non-negative terms: nothing cancels where the row is nearly certain.

    What remains is the rounding of s = 1 + tail, half an ulp of 1; lse - E[x] would lose 1e-6 here.
    """
    for gap in (10.0, 14.0, 17.0, 30.0):
        row = np.zeros((1, 302), dtype=np.float32)
        row[0, 17] = gap
        want = expected.row_statistics(row[0]).entropy
        got = float(gr.glimpse(row).entropy[0])
        assert got > 0.0
        assert abs(got - want) <= 2.5e-7 + 2e-6 * want


@pytest.mark.parametrize("k", [1, 2, 5, 20, 64, 301, 302, 1000])
@pytest.mark.parametrize("name", sorted(hostile_rows(302)))
def test_top_k_entropy_is_that_of_the_renormalised_probabilities(name: str, k: int) -> None:
    row = hostile_rows(302, seed=3)[name]
    want = expected.top_k_entropy(row, k)
    got = float(gr.glimpse(row[None], entropy_top_k=k).entropy[0])
    assert abs(got - want) <= ENTROPY_BOUND * max(1.0, want)


@pytest.mark.parametrize("vocabulary", [4097, 151_936])
def test_top_20_entropy_of_a_large_vocabulary(vocabulary: int) -> None:
    rows = np.concatenate([normal_rows(4, vocabulary, 9), np.zeros((1, vocabulary), np.float32)])
    got = as_numpy(gr.glimpse(rows, entropy_top_k=20).entropy)
    want = [expected.top_k_entropy(row, 20) for row in rows]
    np.testing.assert_allclose(got, want, rtol=0, atol=ENTROPY_BOUND * np.log(20))


@pytest.mark.parametrize("vocabulary", [1, 302, 4097, 151_936])
def test_varentropy_matches_float64(vocabulary: int) -> None:
    for name, row in hostile_rows(vocabulary, seed=11).items():
        want = expected.row_statistics(row)
        log_probs = expected.log_probabilities(row)
        below = log_probs[np.isfinite(log_probs)] - np.log(want.max_prob)
        second_moment = float((want.max_prob * np.exp(below) * below**2).sum())
        got = float(gr.glimpse(row[None], varentropy=True).varentropy[0])
        assert abs(got - want.varentropy) <= 4e-6 * (1.0 + second_moment), name


@pytest.mark.parametrize("name", sorted(hostile_rows(302)))
def test_log_probabilities_of_given_ids(name: str) -> None:
    row = hostile_rows(302, seed=2)[name]
    ids = np.array([0, 301, 151, 100, 100], dtype=np.int32)
    with np.errstate(over="ignore"):  # -3e38 below a maximum of 3e38 is -inf in float32
        want = expected.log_probabilities(row)[ids].astype(np.float32)
    got = as_numpy(gr.glimpse(row[None], logprob_ids=ids).logprobs)
    assert got.shape == (1, 5)
    np.testing.assert_allclose(got[0], want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("vocabulary", [1, 7, 302, 2049, 151_936])
@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_bad_rows_say_so_and_leave_the_others_alone(vocabulary: int, dtype: str) -> None:
    good = normal_rows(1, vocabulary, 4)[0]
    places = sorted({0, vocabulary // 2, vocabulary - 1})
    rows = [good]
    for place in places:
        for poison in (np.nan, -np.nan, np.inf):
            row = good.copy()
            row[place] = poison
            rows.append(row)
    rows.append(np.full(vocabulary, -np.inf, np.float32))
    masked_but_infinite = np.full(vocabulary, -np.inf, np.float32)
    masked_but_infinite[-1] = np.inf
    rows.append(masked_but_infinite)
    if vocabulary > 1:
        both = good.copy()
        both[0], both[-1] = np.inf, np.nan
        rows.append(both)
    rows.append(good)
    batch = np.stack(rows).astype(NUMPY_DTYPES[dtype])
    glimpse = gr.glimpse(batch)
    assert_matches_reference(batch, glimpse, dtype)
    for field in FIELDS:
        values = as_numpy(getattr(glimpse, field))
        np.testing.assert_array_equal(bits(values[0]), bits(values[-1]))
    sampled = as_numpy(gr.sample(batch, temperature=0.6, top_p=0.95, seed=1))
    bad = as_numpy(glimpse.status) != expected.STATUS_OK
    assert (sampled[bad] == -1).all()
    assert ((sampled[~bad] >= 0) & (sampled[~bad] < vocabulary)).all()


def test_status_names() -> None:
    assert [int(gr.Status.OK), int(gr.Status.NAN)] == [0, 1]
    assert [int(gr.Status.POSITIVE_INFINITY), int(gr.Status.ALL_MASKED)] == [2, 3]


def test_output_types_and_shapes() -> None:
    glimpse = gr.glimpse(normal_rows(3, 302))
    for field in ("entropy", "logsumexp", "max_prob", "margin"):
        values = getattr(glimpse, field)
        assert isinstance(values, np.ndarray)
        assert values.dtype == np.float32
        assert values.shape == (3,)
    assert glimpse.token.dtype == np.int32
    assert glimpse.token.shape == (3,)
    assert glimpse.status.dtype == np.uint8
    assert glimpse.status.shape == (3,)


def test_an_empty_batch_is_legal() -> None:
    strideless = torch.from_numpy(np.zeros((0, 302), np.float32))  # all strides are 0
    for empty in (np.zeros((0, 302), np.float32), torch.zeros(0, 302), strideless):
        glimpse = gr.glimpse(empty)
        assert tuple(glimpse.entropy.shape) == (0,)
        assert tuple(gr.sample(empty, temperature=1.0, seed=0).shape) == (0,)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_torch_tensors_come_back_as_torch_tensors(dtype: str) -> None:
    tensor = torch.from_numpy(normal_rows(4, 302, 8)).to(getattr(torch, dtype))
    glimpse = gr.glimpse(tensor)
    assert isinstance(glimpse.entropy, torch.Tensor)
    assert glimpse.entropy.device == tensor.device
    assert_matches_reference(tensor.float().numpy(), glimpse)
    assert isinstance(gr.sample(tensor, temperature=1.0, seed=0), torch.Tensor)


def test_a_tensor_that_requires_grad_is_read() -> None:
    tensor = torch.from_numpy(normal_rows(2, 302)).requires_grad_()
    parameter = torch.nn.Parameter(torch.from_numpy(normal_rows(2, 302)))
    want = bits(gr.glimpse(normal_rows(2, 302)).entropy)
    np.testing.assert_array_equal(bits(gr.glimpse(tensor).entropy), want)
    np.testing.assert_array_equal(bits(gr.glimpse(parameter).entropy), want)


def test_a_producer_that_speaks_only_dlpack() -> None:
    rows = normal_rows(3, 302, 12)
    rows.flags.writeable = False
    glimpse = gr.glimpse(DlpackOnly(rows))
    assert_matches_reference(rows, glimpse)


def test_a_buffer_without_numpy() -> None:
    rows = normal_rows(2, 302, 13)
    view = memoryview(rows.tobytes()).cast("f", (2, 302))
    np.testing.assert_array_equal(bits(gr.glimpse(view).entropy), bits(gr.glimpse(rows).entropy))


def test_the_input_is_not_written() -> None:
    rows = normal_rows(4, 302, 14)
    before = rows.copy()
    gr.glimpse(rows, entropy_top_k=20, varentropy=True)
    gr.sample(rows, temperature=0.6, top_p=0.95, top_k=20, min_p=0.01, seed=3)
    np.testing.assert_array_equal(bits(rows), bits(before))


@pytest.mark.parametrize("dtype", ["float64", "int32", "int64", "uint8", "bool", "complex64"])
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_other_types_are_a_clear_error(dtype: str, framework: str) -> None:
    rows = np.zeros((2, 302), dtype=dtype)
    logits = torch.from_numpy(rows) if framework == "torch" else rows
    with pytest.raises((TypeError, ValueError), match=r"float32.*bfloat16.*float16"):
        gr.glimpse(logits)
    with pytest.raises((TypeError, ValueError), match=r"float32.*bfloat16.*float16"):
        gr.sample(logits, temperature=1.0)


@pytest.mark.parametrize(
    "logits",
    [
        np.zeros((2, 3, 4), np.float32),
        np.zeros((), np.float32),
        np.zeros((2, 0), np.float32),
        np.zeros((302, 2), np.float32).T,
        np.zeros((2, 604), np.float32)[:, ::2],
        np.zeros((2, 302), np.float32)[:, ::-1],
        torch.zeros(302, 2).t(),
        torch.zeros(2, 302, device="meta"),
        torch.zeros(2, 302).to_sparse(),
        [[0.0, 1.0]],
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_layouts_are_a_clear_error(logits: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        gr.glimpse(logits)
    assert len(str(raised.value)) > 20  # a sentence, not a bare assertion


@pytest.mark.parametrize("ids", [[-1], [302], [2**31]])
def test_log_probability_ids_outside_the_vocabulary(ids: list[int]) -> None:
    with pytest.raises((ValueError, IndexError), match=r"302|32 bits"):
        gr.glimpse(np.zeros((1, 302), np.float32), logprob_ids=np.array(ids))


@pytest.mark.parametrize("k", [0, -1])
def test_entropy_top_k_outside_its_range(k: int) -> None:
    with pytest.raises(ValueError, match="entropy_top_k"):
        gr.glimpse(np.zeros((1, 302), np.float32), entropy_top_k=k)


def test_a_vocabulary_beyond_what_masses_can_count() -> None:
    logits = np.zeros((1, (1 << 22) + 1), np.float16)
    with pytest.raises(ValueError, match="4194305 wide; at most 4194304"):
        gr.glimpse(logits)
    assert gr.sample(logits[:, :-1], temperature=1.0, seed=0)[0] >= 0
