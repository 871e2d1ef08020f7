"""The evaluations of the committed report: what runs of which pair, and by which command."""

from __future__ import annotations

import itertools
import json
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from glimprouter.evaluation.plan import PolicySpec
from glimprouter.tasks import task_names

ROUTING = Path(__file__).parents[2] / "benchmarks" / "routing"


@pytest.fixture(scope="module")
def jobs() -> Any:
    sys.path.insert(0, str(ROUTING))
    try:
        import jobs
    finally:
        sys.path.remove(str(ROUTING))
    return jobs


def made(task: str, seeds: int, chosen: int, gaps: tuple[str, ...] = ()) -> dict[str, Any]:
    small = {str(seed): {"path": f"/{task}/small-{seed}"} for seed in range(1, seeds + 1)}
    return {
        "task": task,
        "small": small[str(chosen)],
        "large": {"path": f"/{task}/large-0"},
        "chosen_seed": chosen,
        "small_seeds": small,
        "gaps": {gap: {"path": f"/{task}/{gap}-{chosen}"} for gap in gaps},
    }


PAIRS = {
    "list_reduction": made("list_reduction", 3, 1),
    "arithmetic": made("arithmetic", 3, 2, ("weak", "strong")),
    "arithmetic-result-first": made("arithmetic_result_first", 2, 1),
}


def test_each_pair_and_each_variation_once(jobs: Any, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps(PAIRS))
    every = jobs.jobs_of(tmp_path)
    assert len({job.name for job in every}) == len(every)
    assert len({(job.small, job.large, job.policies, job.temperature) for job in every}) == len(
        every
    )
    kinds = [(job.whole, job.dear) for job in every]
    sent = pickle.loads(pickle.dumps(every))  # to the process that writes the summary
    assert [(job.whole, job.dear) for job in sent] == kinds
    assert kinds == sorted(kinds, reverse=True), "the long ones first"
    assert Counter(kinds) == {(True, False): 2, (False, True): 2, (False, False): 3 + 2 + 4 + 4}
    assert {job.family for job in every} == {"list_reduction", "arithmetic"}
    whole = [job for job in every if job.whole]
    assert {job.varies for job in whole} == {"nothing"}
    assert whole[1].small == PAIRS["arithmetic"]["small"]["path"]
    paths = {job.small for job in every if job.family == "arithmetic"}
    for pair in ("arithmetic", "arithmetic-result-first"):
        models = [*PAIRS[pair]["small_seeds"].values(), *PAIRS[pair]["gaps"].values()]
        assert {model["path"] for model in models} <= paths
    within = [job for job in every if not job.dear and job.family == "arithmetic"]
    assert len({job.varies for job in within}) == len(within)


def test_commands_can_be_followed(jobs: Any, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps(PAIRS))
    for job in jobs.jobs_of(tmp_path):
        command = job.command(tmp_path, 100, 2)
        options = dict(itertools.pairwise(command))
        assert options["--task"] in task_names()
        assert options["--seeds"] == ("2" if job.whole or job.dear else "1")
        assert options["--problems"] == ("50" if job.dear else "100")
        named = [
            word for word, before in zip(command[1:], command, strict=False) if before == "--policy"
        ]
        assert named == list(job.policies)
        for policy in named:
            PolicySpec.parse(policy)
