"""How pairs are made: a large model that another pair takes over is trained once, and before it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark_scripts import script


def test_a_large_model_that_is_taken_over_is_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = script("pairs", "make")
    trained: list[tuple[str, str]] = []

    def train(out: Path, name: str, model: str, seed: int) -> Path:
        folder = out / name / f"{model}-{seed}"
        if not folder.exists():
            trained.append((name, folder.name))
            folder.mkdir(parents=True)
        return folder

    def measure(folder: Path, _: Any, cache: dict[str, Any]) -> dict[str, Any]:
        return cache or {"path": str(folder), "development": 0.6, "report": 0.5}

    monkeypatch.setattr(make, "trained", train)
    monkeypatch.setattr(make, "accuracies", measure)
    borrowing = [name for name, recipe in make.PAIRS.items() if recipe.large_of is not None]
    assert borrowing
    names = [*borrowing, *(name for name in make.PAIRS if name not in borrowing)]
    command = ["make.py", "--out", str(tmp_path), "--jobs", "2", "--pairs", *names]
    monkeypatch.setattr(sys, "argv", command)
    make.main()
    known = json.loads((tmp_path / "pairs.json").read_text())
    assert set(known) == set(make.PAIRS)
    for name in borrowing:
        owner = make.PAIRS[name].large_of
        assert known[name]["large"] == known[owner]["large"]
        assert make.PAIRS[name].digits == make.PAIRS[owner].digits, "one tokenizer for both"
        assert (name, "large-0") not in trained
        first = min(place for place, each in enumerate(trained) if each[0] == name)
        assert first > trained.index((owner, "large-0"))
    assert len(trained) == len(set(trained))


def test_a_large_model_that_is_taken_over_is_not_trained_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train = script("pairs", "train")
    words = ["--pair", "repair-texts-without-slips", "--model", "large", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    with pytest.raises(SystemExit):
        train.main()
    assert "takes the large model of repair" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
