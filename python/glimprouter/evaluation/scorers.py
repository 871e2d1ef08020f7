"""What scores written steps in an evaluation, where the published systems train a model for it.

RSD's reward is the task's own checker: an oracle, which no deployment has. Arbitrage's router is a
logistic regression fitted here, on steps of development problems; its label, that the small model's
step is wrong, stands in for the published one, that the large model's step is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glimprouter.evaluation.chain_systems import DevelopmentChains
from glimprouter.evaluation.outcomes import check_steps
from glimprouter.evaluation.solving import Bench, begun, chunks_of, following
from glimprouter.policies import StepScore, WrittenStep, step_features
from glimprouter.tasks import Problem

__all__ = ["scorer_of"]

Key = tuple[int, int]


def scorer_of(name: str, bench: Bench, problems: Sequence[Problem], batch: int) -> Any:
    """What a rule is given besides its parameters.

    Args:
        name: ``"reward"``, ``"router"`` or ``"chains"``.
        bench: Pair and task.
        problems: Of the development split.
        batch: In flight.

    Raises:
        ValueError: The task cannot check steps, or nothing can be learnt from these problems.
    """
    if name == "chains":
        model: Any = bench.model  # a RoutedModel: on engines these systems are refused
        return DevelopmentChains(model, bench.task, problems, batch, bench.file.records.path.parent)
    if not bench.task.checks_steps:
        raise ValueError(
            f"task {bench.task.name} has no checker of steps, which policies with a {name} need"
        )
    return _Checker(bench) if name == "reward" else _fitted(bench, problems, batch)


class _Checker:
    """1 for a step that the task's checker finds right, 0 for a wrong one."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def __call__(self, question: str | None, steps: Sequence[str], step: str) -> float:
        problem = self._bench.by_prompt[question or ""]
        verdict = check_steps(self._bench.task, problem, [*steps, step])[-1]
        return 0.0 if verdict is False else 1.0


class _Watching(StepScore):
    """Keeps the features of what the small model writes, and lets all of it be."""

    def __init__(self) -> None:
        self.features: dict[Key, dict[int, list[float]]] = {}

    def score(self, step: WrittenStep) -> float:
        own = self.features.setdefault((step.seed, step.substream), {})
        own[step.index] = step_features(step)
        return 0.0

    def rejects(self, score: float) -> bool:
        return False


def _fitted(bench: Bench, problems: Sequence[Problem], batch: int) -> Any:
    """A router that knows which steps the small model got wrong."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features: list[list[float]] = []
    wrong: list[int] = []
    for chunk in chunks_of(problems, batch):
        watching = _Watching()
        with following(bench.model, watching):
            run = begun(bench.model, chunk, 0, set(), {"answer_model": "small"})
            results = {e.sequence: e.result for e in run if e.result is not None}
        for place, result in results.items():
            own = watching.features.get((result.trace.seed, result.trace.substream), {})
            texts = [step.text for step in result.trace.steps]
            for index, verdict in enumerate(check_steps(bench.task, chunk[place], texts)):
                if verdict is not None and index in own:
                    features.append(own[index])
                    wrong.append(int(not verdict))
    if len(set(wrong)) < 2:
        raise ValueError(
            f"the small model's {len(wrong)} checked steps of {len(problems)} development problems"
            " are all right, or all wrong: no router can be learnt; more problems may help"
        )
    router = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression(max_iter=1000))
    return router.fit(features, wrong)
