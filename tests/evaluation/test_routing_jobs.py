"""The evaluations of the committed report: what runs of which pair, and by which command."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmark_scripts import script
from glimprouter.evaluation.plan import PolicySpec
from glimprouter.tasks import task_names


@pytest.fixture(scope="module")
def jobs() -> Any:
    return script("routing", "jobs")


def made(
    name: str, task: str, seeds: int, chosen: int, gaps: tuple[str, ...] = (), large: str = ""
) -> dict[str, Any]:
    small = {str(seed): {"path": f"/{name}/small-{seed}"} for seed in range(1, seeds + 1)}
    return {
        "task": task,
        "small": small[str(chosen)],
        "large": {"path": f"/{large or name}/large-0"},
        "chosen_seed": chosen,
        "small_seeds": small,
        "gaps": {gap: {"path": f"/{name}/{gap}-{chosen}"} for gap in gaps},
    }


PAIRS = {
    "list_reduction": made("list_reduction", "list_reduction", 3, 1),
    "arithmetic": made("arithmetic", "arithmetic", 3, 2, ("weak", "strong")),
    "arithmetic-result-first": made("result-first", "arithmetic_result_first", 2, 1),
    "repair": made("repair", "repair", 2, 1),
    "repair-texts-without-slips": made("slips", "repair", 2, 1, large="repair"),
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
    variations = (2 + 3) + (2 + 2 + 2) + 2 + (2 + 1) + 2
    assert Counter(kinds) == {(True, False): 3, (False, True): 3, (False, False): variations}
    assert {job.family for job in every} == {"list_reduction", "arithmetic", "repair"}
    whole = [job for job in every if job.whole]
    assert {job.varies for job in whole} == {"nothing"}
    assert whole[1].small == PAIRS["arithmetic"]["small"]["path"]
    paths = {job.small for job in every if job.family == "arithmetic"}
    for pair in ("arithmetic", "arithmetic-result-first"):
        models = [*PAIRS[pair]["small_seeds"].values(), *PAIRS[pair]["gaps"].values()]
        assert {model["path"] for model in models} <= paths
    borrowing = [job for job in every if job.name.startswith("repair-texts")]
    assert [job.varies for job in borrowing] == [f"texts without slips ({n})" for n in (1, 2)]
    assert {job.large for job in borrowing} == {"/repair/large-0"}
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
