"""The number that hysteresis compares with its threshold, against the rule itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from glimprouter.evaluation.rules import RULES
from glimprouter.policies import Glimpse, Policy

ENTROPIES = st.lists(st.integers(0, 40).map(lambda n: n / 8), min_size=1, max_size=30)


@given(ENTROPIES, st.integers(0, 41), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 5))
def test_a_step_is_the_large_models_where_its_score_is_above(
    entropies: list[float], eighths: int, ratio: float, warm_up: int
) -> None:
    threshold = eighths / 8
    rule = RULES["hysteresis"]
    assert rule.along is not None
    scores = rule.along(entropies, {"ratio": ratio, "warm_up": warm_up})
    policy = rule.build({"threshold": threshold, "ratio": ratio, "warm_up": warm_up})
    assert isinstance(policy, Policy)
    previous = None
    for step, (entropy, score) in enumerate(zip(entropies, scores, strict=True)):
        writer = policy.before(Glimpse(0, 0, step, 0, previous, entropy))
        assert writer == ("large" if score > threshold else "small")
        previous = writer
