"""Interrupted in a pass: what had come to its end by then is there, and stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evaluation_runs import evaluated, pair, task
from glimprouter.evaluation import probes, read_records
from glimprouter.evaluation.chain_systems import DevelopmentChains
from glimprouter.evaluation.record_file import FILE_NAME


@contextmanager
def interrupted(when: Callable[[], bool]) -> Iterator[None]:
    """In the first pass of either model in which a condition holds; it must come to hold."""

    def stop(*_: Any) -> None:
        if when():
            raise KeyboardInterrupt

    hooks = [model.register_forward_hook(stop) for model in (pair().small, pair().large)]
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def test_a_probed_chain_is_kept_when_its_last_fork_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pass of the run itself: chains are not read again here."""
    monkeypatch.setattr(probes, "why_not_reread", lambda _: "for this test")
    path, chains = tmp_path / FILE_NAME, 4
    sizes: dict[str, Any] = {"policies": ["random"], "timing_batches": [], "probe_problems": chains}

    def kept() -> int:
        return path.read_bytes().count(b'"kind": "probed"') if path.exists() else 0

    with interrupted(lambda: 0 < kept() < chains):
        evaluated(tmp_path, **sizes)
    before = read_records(tmp_path)
    assert 0 < len(before.probed) < chains
    evaluated(tmp_path, **sizes)
    after = read_records(tmp_path)
    assert len(after.probed) == chains
    assert list(after.probed)[: len(before.probed)] == list(before.probed)
    assert after.probes[: len(before.probes)] == before.probes
    assert len({(p.problem, p.step, p.draw) for p in after.probes}) == len(after.probes)


def test_a_development_chain_is_kept_when_it_has_ended(tmp_path: Path) -> None:
    problems = task().problems(6, "development")
    path = tmp_path / "development-small.json"

    def chains(folder: Path) -> DevelopmentChains:
        return DevelopmentChains(pair(), task(), problems, 6, folder)

    def kept() -> int:
        return path.read_text().count('"right"') if path.exists() else 0

    with interrupted(lambda: 0 < kept() < len(problems)):
        _ = chains(tmp_path).small
    some = kept()
    assert 0 < some < len(problems)
    found = chains(tmp_path).small
    assert kept() == len(problems)
    (tmp_path / "whole").mkdir()
    whole = chains(tmp_path / "whole").small
    assert [each.token_ids for each in found] == [each.token_ids for each in whole]
    assert [each.right for each in found] == [each.right for each in whole]
