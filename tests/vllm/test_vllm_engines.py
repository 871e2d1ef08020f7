"""Real engines of vLLM in this process, against RoutedModel on the shipped pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glimprouter import RouterConfig
from glimprouter.calibration import calibrate
from glimprouter.evaluation import engines_plan, evaluate, read_records
from glimprouter.hf import RoutedModel
from glimprouter.tasks import task_of
from glimprouter.vllm import RoutedEngines
from hf_pairs import trained_pair
from vllm_comparison import CONFIG, PROBLEMS, PROMPTS, differences

pytest.importorskip("vllm", reason="vLLM is not installed: no engine was tried")


def test_routes_and_texts_are_those_of_a_routed_model(engines: RoutedEngines) -> None:
    """40 problems, 32 at once."""
    want = trained_pair().routed(**CONFIG).generate(PROMPTS)
    before = {name: usage.requests for name, usage in engines.usage.items()}
    engines.max_sequences = 32
    got = engines.generate(PROMPTS, **CONFIG)
    assert not differences(got, want)
    right = sum(r.answer == p.answer for r, p in zip(got, PROBLEMS, strict=True))
    assert right == sum(r.answer == p.answer for r, p in zip(want, PROBLEMS, strict=True)) >= 36
    hard = sum(step.model == "large" for result in got for step in result.trace.steps)
    asked = sum(usage.requests - before[name] for name, usage in engines.usage.items())
    assert hard >= 40
    assert asked <= 2 * hard + 2 * len(PROMPTS)


@pytest.mark.parametrize(
    "config",
    [{"large_tokens": 2, "first_steps_large": 2}, {"max_think_tokens": 40}, {"route": "small"}],
    ids=str,
)
def test_other_options(engines: RoutedEngines, config: dict[str, Any]) -> None:
    want = trained_pair().routed(**{**CONFIG, **config}).generate(PROMPTS[:8])
    assert not differences(engines.generate(PROMPTS[:8], **{**CONFIG, **config}), want)


def test_draws_do_not_depend_on_what_else_is_in_the_batch(engines: RoutedEngines) -> None:
    """Sampled text is reproducible: alone, among others, and on a RoutedModel."""
    own = {**CONFIG, "temperature": 0.8, "top_p": 0.95}
    together = engines.generate(PROMPTS[:6], [1, 2, 3, 4, 5, 6], **own)
    engines.max_sequences = 1
    alone = engines.generate(PROMPTS[:6], [1, 2, 3, 4, 5, 6], **own)
    engines.max_sequences = 32
    same = [a.token_ids == b.token_ids for a, b in zip(together, alone, strict=True)]
    assert sum(same) >= 5  # a draw at the edge between two tokens may fall otherwise
    want = trained_pair().routed(**own).generate(PROMPTS[:6], [1, 2, 3, 4, 5, 6])
    assert {step.model for result in want for step in result.trace.steps} == {"small", "large"}
    same = [a.token_ids == b.token_ids for a, b in zip(alone, want, strict=True)]
    assert sum(same) >= 5


def test_most_of_a_prefix_is_not_computed_again(engines: RoutedEngines) -> None:
    """A block is 32 tokens: less than one is computed again at a hand-off."""
    before = engines.usage["small"].recomputed_tokens, engines.usage["small"].requests
    engines.generate(PROMPTS[20:28], **CONFIG)
    after = engines.usage["small"].recomputed_tokens, engines.usage["small"].requests
    assert after[0] > before[0]
    assert (after[0] - before[0]) / (after[1] - before[1]) < 32


@pytest.mark.long
def test_an_evaluation_and_a_calibration(
    engines: RoutedEngines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decided and judged is what RoutedModel's are, but for rounding."""
    pair, config = trained_pair(), RouterConfig(**CONFIG)
    monkeypatch.setattr(engines, "config", config)
    own = RoutedModel(pair.small, pair.large, pair.tokenizer, config, drafts=0, max_sequences=32)
    plan = engines_plan(problems=5, development_problems=4, shares=[0.4], seeds=1, rounds=1)
    found, expected = (
        read_records(evaluate(model, task_of("list_reduction"), tmp_path / name, plan))
        for name, model in (("engines", engines), ("own", own))
    )
    same = []
    for unit, record in expected.problems.items():
        if unit.arm.startswith("entropy"):  # its threshold, which is its name, rounds otherwise
            continue
        texts = [[(s.text, s.writer) for s in each.steps[unit]] for each in (found, expected)]
        same.append(texts[0] == texts[1] and found.problems[unit].correct == record.correct)
    assert len(same) == 19
    assert sum(same) >= 18
    shares = [
        next(arm.development_share for arm in each.arms if arm.rule == "entropy")
        for each in (found, expected)
    ]
    assert shares[0] == pytest.approx(shares[1], abs=0.05)
    got, want = (calibrate(model, PROMPTS[:8], 0.3, max_rounds=1) for model in (engines, own))
    assert got.threshold == pytest.approx(want.threshold, abs=0.02)
    assert got.verification_steps == want.verification_steps
