"""The published client's decisions on the same logits (entropy_top_k=20, `>=`).

The client asks a server for the 20 largest log-probabilities of the first token, keyed by the
token's string, exponentiates them, renormalises to one and takes the natural-log entropy; a step
goes to the large model when H >= tau. Ids that decode to equal strings collapse into one there,
which is an accident of its protocol: rows where that happens among the top 20 are counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import glimprouter as gr
from reference.rows import normal_rows

VOCABULARY = 4000
ROWS = 400
DELIMITER_ID = VOCABULARY - 1


def client_entropy(row: NDArray[np.float32], strings: list[str]) -> tuple[float, int]:
    """Returns the client's H in nats, and how many distinct strings the top 20 had."""
    shifted = row.astype(np.float64) - row.max()
    log_probs = shifted - np.log(np.exp(shifted).sum())
    top = np.argsort(-log_probs, kind="stable")[:20]
    by_string = {strings[token]: float(np.exp(log_probs[token])) for token in top}
    total = sum(by_string.values())
    probabilities = np.array(list(by_string.values())) / total
    probabilities = probabilities[probabilities > 0.0]
    return float(-(probabilities * np.log(probabilities)).sum()), len(by_string)


def recorded_logits() -> NDArray[np.float32]:
    """First-token rows whose H runs from 0 to ln 20, most of them near the default tau of 1."""
    rows = normal_rows(ROWS, VOCABULARY, seed=2601)
    rows *= np.geomspace(0.2, 8.0, ROWS).astype(np.float32)[:, None]
    rows[:, DELIMITER_ID] = rows.min(axis=1)  # never the candidate, which would not be a step
    return rows


@pytest.fixture(scope="module")
def vocabulary_strings() -> list[str]:
    """One token in fifty decodes to the replacement character, as pieces of UTF-8 do."""
    return ["\ufffd" if token % 50 == 7 else f"t{token}" for token in range(VOCABULARY)]


def routes(logits: NDArray[np.float32], **config: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns H and the routes of `StepRouter` for rows at the start of a step."""
    token_bytes = [b"x%d" % token for token in range(VOCABULARY)]
    token_bytes[DELIMITER_ID] = b"\n\n"
    boundary = gr.StepBoundary(token_bytes, delimiters=("\n\n",))
    router = gr.StepRouter(
        boundary, gr.RouterConfig(temperature=0.0, **config), max_sequences=len(logits)
    )
    rows = [router.open() for _ in range(len(logits))]
    out = router.outputs(len(logits))
    router.step("small", logits, rows, out)
    return np.array(out.entropy), np.array(out.route)


@pytest.mark.parametrize("threshold", [0.45, 1.0, 1.8])
def test_same_entropy_and_same_routes(threshold: float, vocabulary_strings: list[str]) -> None:
    logits = recorded_logits()
    entropy, route = routes(logits, entropy_top_k=20, comparison=">=", threshold=threshold)
    client = [client_entropy(row, vocabulary_strings) for row in logits]
    collapsed = np.array([distinct < 20 for _, distinct in client])
    want = np.array([value for value, _ in client])
    np.testing.assert_allclose(entropy[~collapsed], want[~collapsed], rtol=0, atol=1e-6)
    to_large = np.where(want >= threshold, int(gr.Route.LARGE), int(gr.Route.SMALL))
    assert (np.abs(want - threshold) > 1e-6).all(), "no row may hang on rounding"
    np.testing.assert_array_equal(route[~collapsed], to_large[~collapsed])
    share = float((route == int(gr.Route.LARGE)).mean())
    print(f"tau {threshold}: {share:.0%} large, {collapsed.sum()} of {ROWS} rows collapsed ids")
    assert 0.05 < share < 0.95, "both decisions must occur"
    assert 0 < collapsed.sum() < ROWS // 2


def test_comparison_decides_only_at_equality() -> None:
    """H == tau: the published code's `>=` goes large, the paper's `>` stays small."""
    row = recorded_logits()[ROWS // 2][None]
    entropy, _ = routes(row, entropy_top_k=20)
    threshold = float(entropy[0])
    _, at_least = routes(row, entropy_top_k=20, comparison=">=", threshold=threshold)
    _, above = routes(row, entropy_top_k=20, comparison=">", threshold=threshold)
    assert at_least.tolist() == [int(gr.Route.LARGE)]
    assert above.tolist() == [int(gr.Route.SMALL)]


def test_the_exact_entropy_is_another_quantity() -> None:
    """Thresholds of the two are not interchangeable: the full entropy is never the smaller one."""
    logits = recorded_logits()
    full, _ = routes(logits)
    top_20, _ = routes(logits, entropy_top_k=20)
    assert (full >= top_20 - 2e-6).all()
    assert (full > top_20 + 0.1).any()
