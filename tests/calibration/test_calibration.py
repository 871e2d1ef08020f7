"""Calibration: the threshold it finds, and what it says about it."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import glimprouter as gr
from calibration_runs import PROMPTS, routed
from glimprouter.hf import RoutedModel

SHARES = (0.25, 0.5)


class Spy:
    """A pair that notes what it is asked to run."""

    def __init__(self, model: RoutedModel) -> None:
        self._model = model
        self.calls: list[tuple[list[str], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def stream(self, prompts: Sequence[str], **options: Any) -> Any:
        self.calls.append((list(prompts), options))
        return self._model.stream(prompts, **options)


@pytest.fixture(scope="module", params=SHARES)
def calibrated(request: pytest.FixtureRequest) -> tuple[gr.Calibration, Spy]:
    spy = Spy(routed())
    return gr.calibrate(spy, PROMPTS, request.param), spy  # type: ignore[arg-type]


def test_the_verified_share_is_the_wanted_one(calibrated: tuple[gr.Calibration, Spy]) -> None:
    """Three standard errors of both halves: neither threshold nor share is known better."""
    result, _ = calibrated
    error = (result.high - result.low) / (2 * 1.96) * math.sqrt(2)
    assert abs(result.measured_share - result.large_share) < 3 * error < 0.12
    assert (result.calibration_prompts, result.verification_prompts) == (24, 24)
    assert (result.comparison, result.entropy_top_k) == (">", None)


def test_the_share_was_measured_on_other_prompts(calibrated: tuple[gr.Calibration, Spy]) -> None:
    result, spy = calibrated
    started = spy.calls[1:]  # the first only checks the prompts
    first, second = started[0][0], started[-1][0]
    assert sorted(first + second) == sorted(PROMPTS)
    assert [call[0] for call in started[:-1]] == [first] * (1 + result.rounds)
    assert started[0][1]["threshold"] == math.inf
    assert started[-1][1]["threshold"] == result.threshold
    assert started[-1][1]["seeds"] != started[0][1]["seeds"]
    # With the large model's answers, which the runs of the calibration leave out.
    traces = [r.trace for r in routed().generate(second, threshold=result.threshold)]
    steps = [step for trace in traces for step in trace.steps if step.entropy is not None]
    assert len(steps) == result.verification_steps
    share = sum(step.model == "large" for step in steps) / len(steps)
    assert result.measured_share == share
    assert share == sum(s.entropy > result.threshold for s in steps if s.entropy) / len(steps)


def test_the_threshold_is_a_quantile_of_its_own_run(
    calibrated: tuple[gr.Calibration, Spy],
) -> None:
    result, spy = calibrated
    results = routed().generate(spy.calls[1][0], threshold=result.threshold)
    entropies = [s.entropy for r in results for s in r.trace.steps if s.entropy is not None]
    assert len(entropies) == result.calibration_steps
    above = sum(h > result.threshold for h in entropies) / len(entropies)
    assert abs(above - result.large_share) <= 0.01 + 0.5 / len(entropies)


def test_entropy_top_k_and_comparison_are_the_configured_ones() -> None:
    result = gr.calibrate(routed(entropy_top_k=2, comparison=">="), PROMPTS[:8], 0.05)
    assert (result.entropy_top_k, result.comparison) == (2, ">=")
    assert 0 < result.threshold <= math.log(2)
    assert gr.calibrate(routed(), PROMPTS[:8], 0.05).threshold > math.log(2)


class FakeModel:
    """Entropies made up as a function of prompt and threshold; no models in it."""

    def __init__(self, entropies: Callable[[int, float], list[float]], **config: Any) -> None:
        self.config = gr.RouterConfig(**config)
        self.policy = None
        self._entropies = entropies
        self.thresholds: list[float] = []

    def stream(self, prompts: list[list[int]], seeds: int, **options: Any) -> Iterator[Any]:
        if "threshold" in options:  # the check of the prompts has none
            self.thresholds.append(options["threshold"])
        return self._events(prompts, **options)

    def _events(
        self, prompts: list[list[int]], threshold: float = 0.0, answer_model: str = ""
    ) -> Iterator[Any]:
        large = np.greater if self.config.comparison == ">" else np.greater_equal
        for index, prompt in enumerate(prompts):
            values = [float(np.float32(h)) for h in self._entropies(prompt[0], threshold)]
            steps = [
                SimpleNamespace(
                    entropy=None if math.isnan(h) else h,
                    model="large" if large(h, threshold) else "small",
                )
                for h in values
            ]
            trace = SimpleNamespace(steps=[*steps, SimpleNamespace(entropy=None, model="large")])
            yield SimpleNamespace(
                kind="done", sequence=index, result=SimpleNamespace(trace=trace), message=None
            )


FAKE_PROMPTS = [[index] for index in range(40)]


@pytest.fixture
def no_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = "a" * 64 + ":" + "b" * 64
    monkeypatch.setattr("glimprouter.calibration.threshold.pair_fingerprint", lambda _: made_up)


def responding(slope: float) -> Callable[[int, float], list[float]]:
    """Entropies in [2, 4] at a threshold of 3.4 nats; near it they fall by slope nats a nat."""
    table = np.random.default_rng(5).uniform(2.0, 4.0, (len(FAKE_PROMPTS), 50))

    def entropies(prompt: int, threshold: float) -> list[float]:
        beyond = min(threshold, 4.5) - 3.4
        return (table[prompt] * math.exp(-slope / 3.4 * beyond)).tolist()

    return entropies


@pytest.mark.parametrize("slope", [0.0, 0.5, 0.95, 1.5, 2.5, -0.5])
def test_the_fixed_point_is_found(no_fingerprint: None, slope: float) -> None:
    """From a slope of about 1 on, undamped rounds would swing for ever."""
    entropies = responding(slope)
    wanted = 0.3
    model = FakeModel(entropies)
    result = gr.calibrate(model, FAKE_PROMPTS, wanted, max_rounds=25)  # type: ignore[arg-type]

    def share(threshold: float) -> float:
        values = [h for prompt in FAKE_PROMPTS for h in entropies(prompt[0], threshold)]
        return float(np.mean(np.array(values) > threshold))

    # The 70 % quantile at a threshold of 3.4 is 3.4 itself.
    assert result.threshold == pytest.approx(3.4, abs=0.05)
    assert share(result.threshold) == pytest.approx(wanted, abs=0.03)
    assert result.rounds < 25
    assert len(model.thresholds) == 2 + result.rounds


def test_without_a_fixed_point_the_nearest_round_counts(no_fingerprint: None) -> None:
    """Any threshold below 1 gives entropies above it, any above 1 entropies below it."""

    def entropies(prompt: int, threshold: float) -> list[float]:
        center = 2.0 if threshold < 1 else 0.5
        return np.linspace(center, center + (0.1 if threshold < 1 else 0.9), 10).tolist()

    model = FakeModel(entropies)
    with pytest.warns(RuntimeWarning, match=r"of 200 glimpsed steps go to the large model, 50\.0"):
        result = gr.calibrate(model, FAKE_PROMPTS, 0.5, max_rounds=6)  # type: ignore[arg-type]
    assert result.rounds == 6
    assert len(set(model.thresholds[1:-1])) > 2
    distance = []
    for tau in model.thresholds[1:-1]:
        distance.append(abs(float(np.mean(np.float32(entropies(0, tau)) > tau)) - 0.5))
    assert result.threshold == model.thresholds[1:-1][int(np.argmin(distance))]


@pytest.mark.parametrize(("comparison", "at_once"), [(">", 0.25), (">=", 0.25)])
def test_few_distinct_entropies(no_fingerprint: None, comparison: str, at_once: float) -> None:
    """Three quarters of the steps have H = 0, the rest H = 1: 25 % can be had, 40 % cannot."""
    model = FakeModel(lambda prompt, threshold: [0.0, 0.0, 1.0, 0.0], comparison=comparison)
    result = gr.calibrate(model, FAKE_PROMPTS, 0.25)  # type: ignore[arg-type]
    assert (result.threshold, result.measured_share) == (0.5, at_once)
    with pytest.warns(RuntimeWarning, match=r"25\.0 % of 80 .* 40\.0 % were wanted: .* too few"):
        result = gr.calibrate(model, FAKE_PROMPTS, 0.4)  # type: ignore[arg-type]
    assert (result.threshold, result.measured_share, result.rounds) == (0.5, at_once, 1)


def test_forced_steps_do_not_count(no_fingerprint: None) -> None:
    model = FakeModel(lambda prompt, threshold: [math.nan, 1.0, 2.0])
    result = gr.calibrate(model, FAKE_PROMPTS, 0.5)  # type: ignore[arg-type]
    assert (result.calibration_steps, result.verification_steps) == (40, 40)
    assert (result.threshold, result.measured_share) == (1.5, 0.5)


def test_progress_tells_each_prompt(no_fingerprint: None) -> None:
    model = FakeModel(lambda prompt, threshold: [1.0, 2.0])
    told: list[tuple[str, int, int]] = []
    gr.calibrate(
        model,  # type: ignore[arg-type]
        [*FAKE_PROMPTS[:5], [3], [4]],  # repetitions count once
        0.5,
        progress=lambda *report: told.append(report),
    )
    halves = {"unrouted": 3, "round 1": 3, "verification": 2}
    assert told == [(stage, done, n) for stage, n in halves.items() for done in range(n + 1)]


BAD_CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "none": ({"large_share": 0.0}, ValueError, r"in \(0, 1\), got 0\.0; .* route=\"large\""),
    "all": ({"large_share": 1}, ValueError, r"large_share must lie in \(0, 1\), got 1"),
    "nan": ({"large_share": math.nan}, ValueError, "got nan"),
    "text": ({"large_share": "0.5"}, TypeError, "large_share must be a number, got '0.5'"),
    "bool": ({"large_share": True}, TypeError, "large_share must be a number, got True"),
    "three": ({"prompts": [[1], [2], [3]]}, ValueError, "at least 4 different .* got 3"),
    "twins": ({"prompts": [[1], [2], [3], [1]]}, ValueError, "at least 4 different .* got 3"),
    "one": ({"prompts": "a prompt"}, TypeError, "prompts must be a list of prompts, got str"),
    "seed": ({"seed": -1}, ValueError, "seed must lie in"),
    "rounds": ({"max_rounds": 0}, ValueError, "max_rounds must lie in"),
    "tolerance": ({"tolerance": -0.1}, ValueError, r"tolerance must lie in \[0, 1\]"),
    "tolerance text": ({"tolerance": "no"}, TypeError, "tolerance must be a number"),
}


@pytest.mark.parametrize(("options", "kind", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = FakeModel(lambda prompt, threshold: [1.0])
    with pytest.raises(kind, match=message):
        gr.calibrate(**{"model": model, "prompts": FAKE_PROMPTS, **options})
    assert model.thresholds == [], "it started to run"


def test_models_that_never_glimpse() -> None:
    model: Any = FakeModel(lambda prompt, threshold: [math.nan] * 3, first_steps_large=3)
    with pytest.raises(ValueError, match=r"no step was glimpsed in 20 prompts .* is 3"):
        gr.calibrate(model, FAKE_PROMPTS)
    model = FakeModel(lambda prompt, threshold: [1.0], route="large")
    with pytest.raises(ValueError, match='route is "large", so it never glimpses'):
        gr.calibrate(model, FAKE_PROMPTS)


def test_a_bad_prompt_is_named_before_anything_runs() -> None:
    told: list[Any] = []
    prompts = [*PROMPTS[:4], "9" * 2000]
    with pytest.raises(ValueError, match=r"prompt 4 has \d+ tokens"):
        gr.calibrate(routed(), prompts, progress=lambda *report: told.append(report))
    assert told == []


def test_a_run_that_fails_is_an_error() -> None:
    model: Any = FakeModel(lambda prompt, threshold: [1.0])
    failed = SimpleNamespace(kind="error", sequence=0, result=None, message="nan at 3")
    model._events = lambda prompts, **options: iter([failed])
    with pytest.raises(RuntimeError, match="calibration, unrouted: nan at 3"):
        gr.calibrate(model, FAKE_PROMPTS)


def test_importing_the_package_needs_numpy_only() -> None:
    code = (
        "import sys, glimprouter\n"
        "assert 'glimprouter.calibration' not in sys.modules\n"
        "assert callable(glimprouter.calibrate) and glimprouter.Calibration\n"
        "assert not {'torch', 'transformers', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not hasattr(glimprouter, 'nothing')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
