"""`calibrate` and `evaluate run` of a pair behind two URLs: engines that play vLLM stand there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import calibration_runs
from cli_runs import PAIR, ended
from glimprouter.calibration import Calibration
from glimprouter.cli import pairs
from glimprouter.evaluation import read_records
from glimprouter.vllm import RoutedEngines
from hf_pairs import trained_pair
from played_engines import PlayedEngine

URLS = ("--small-url", "http://127.0.0.1:9", "--large-url", "http://127.0.0.1:10")
LIMITS = ("--max-step-tokens", "64", "--max-think-tokens", "200", "--max-answer-tokens", "16")
RUN = ("evaluate", "run", "--task", "list_reduction", *LIMITS, "--seeds", "1")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RoutedEngines]]:
    """What the commands open in place of servers."""
    made: list[RoutedEngines] = []

    def stand_in(small: str, large: str, *tokenizers: Any, **options: Any) -> RoutedEngines:
        assert (small, large) == (URLS[1], URLS[3])
        model, config = trained_pair(), tokenizers[2]
        engines = [PlayedEngine(each, model.tokenizer) for each in (model.small, model.large)]
        for unused in ("api_key", "trust_remote_code"):
            del options[unused]
        made.append(RoutedEngines(*engines, model.tokenizer, config, **options))
        return made[-1]

    monkeypatch.setattr(pairs, "open_engines", stand_in)
    yield made
    assert all(client._thread is None for client in made), "a command closes what it has opened"


def test_calibrate(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    opened: list[RoutedEngines],
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(calibration_runs.PROMPTS[:6]), encoding="utf-8")
    words = ("calibrate", *URLS, "-f", str(prompts), "--out", str(tmp_path / "pair.json"))
    status, out, err = ended(monkeypatch, capfd, *words, *LIMITS, "--temperature", "0", "--plain")
    assert status == 0, err
    assert "threshold: " in out
    assert Calibration.from_json(tmp_path / "pair.json").on_engines
    assert opened[0].patience == 60.0


def test_evaluate_runs_what_engines_can_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    opened: list[RoutedEngines],
) -> None:
    """Without a word about policies and probes, too."""
    sizes = ("--problems", "2", "--development-problems", "2", "--shares", "0.4", "--rounds", "1")
    words = (*RUN, *URLS, *sizes, "--out", str(tmp_path / "out"), "--plain")
    status, out, err = ended(monkeypatch, capfd, *words)
    assert status == 0, err
    assert out == f"records: {tmp_path}/out/records.jsonl\n"
    records = read_records(tmp_path / "out")
    assert {arm.rule for arm in records.arms} == {"small-alone", "large-alone", "random", "entropy"}
    assert not records.probed
    header = json.loads((tmp_path / "out" / "records.jsonl").read_text().splitlines()[0])
    assert header["identity"]["engine"] == "vLLM"
    status, out, err = ended(monkeypatch, capfd, "evaluate", "report", str(tmp_path / "out"))
    assert status == 0, err
    assert len(opened) == 1


BAD = {
    "policy": ((*URLS, "--policy", "margin"), "policy margin is not for engines"),
    "probes": ((*URLS, "--probe-problems", "3"), "probe_problems is 3, and must be 0 on engines"),
    "drafts": ((*URLS, "--drafts", "2"), "--drafts is not for --small-url and --large-url"),
    "device": ((*URLS, "--device", "cuda:0"), "--device is not for --small-url"),
    "both": ((*URLS, *PAIR), "exclude each other"),
    "one": (URLS[:2], "--large-url is missing"),
    "neither": ((), "--small is missing"),
    "tokenizer": ((*PAIR, "--small-tokenizer", "x"), "--small-tokenizer is for servers"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_what_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    opened: list[RoutedEngines],
    words: tuple[str, ...],
    message: str,
) -> None:
    status, out, err = ended(monkeypatch, capfd, *RUN, *words, "--out", str(tmp_path / "out"))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not opened
    assert not list(tmp_path.iterdir())
