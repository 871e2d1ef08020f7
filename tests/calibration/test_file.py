"""The file of a calibration, the pair it belongs to, and the commands that write and read it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import glimprouter as gr
from calibration_runs import CONFIG, PROMPTS, routed
from cli_runs import PAIR, ended, run
from glimprouter.calibration.fingerprint import pair_fingerprint
from glimprouter.demo_pair import large_path, small_path
from glimprouter.hf import RoutedModel
from hf_pairs import trained_pair

LIMITS = ("--temperature", "0", "--max-answer-tokens", "16", "--max-think-tokens", "320")

EXAMPLE = gr.Calibration(
    threshold=0.3125,
    large_share=0.25,
    measured_share=0.24,
    low=0.2,
    high=0.29,
    calibration_prompts=24,
    verification_prompts=23,
    calibration_steps=301,
    verification_steps=299,
    rounds=2,
    comparison=">=",
    entropy_top_k=20,
    pair="0f" * 32 + ":" + "1e" * 32,
)


@pytest.mark.parametrize("top_k", [None, 20])
def test_the_file_holds_everything(tmp_path: Path, top_k: int | None) -> None:
    want = dataclasses.replace(EXAMPLE, entropy_top_k=top_k)
    path = tmp_path / "calibration.json"
    path.write_text("what was there before")
    want.to_json(path)
    assert gr.Calibration.from_json(path) == want
    assert [p.name for p in tmp_path.iterdir()] == ["calibration.json"]
    record = json.loads(path.read_text(encoding="utf-8"))
    assert (record["kind"], record["schema_version"]) == ("glimprouter.calibration", 1)
    assert want.router_options() == {
        "threshold": 0.3125,
        "comparison": ">=",
        "entropy_top_k": top_k,
    }


def changed(**changes: Any) -> str:
    header = {"kind": "glimprouter.calibration", "schema_version": 1}
    return json.dumps({**header, **dataclasses.asdict(EXAMPLE), **changes})


def without(name: str) -> str:
    record = json.loads(changed())
    del record[name]
    return json.dumps(record)


FOREIGN = "is not a glimprouter calibration"
BAD_FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", f"{FOREIGN}, or is cut short"),
    "half": (changed()[:-20], f"{FOREIGN}, or is cut short"),
    "binary": (b"\xff\xfe\x00", f"{FOREIGN}, or is cut short"),
    "deep": ("[" * 200_000, f"{FOREIGN}, or is cut short"),
    "long number": ('{"a": ' + "9" * 5000 + "}", f"{FOREIGN}, or is cut short"),
    "a list": ("[1]", FOREIGN),
    "another kind": (changed(kind="glimprouter.trace"), f"{FOREIGN} .no kind"),
    "no kind": (without("kind"), f"{FOREIGN} .no kind"),
    "version 2": (changed(schema_version=2), "has schema version 2; this glimprouter reads 1"),
    "version true": (changed(schema_version=True), "has schema version True"),
    "no version": (without("schema_version"), "has schema version None"),
    "unknown field": (changed(tau=1.0), "unknown field 'tau'"),
    **{f"no {name}": (without(name), f"lacks '{name}'") for name in EXAMPLE.__slots__},
    "nan": (changed(threshold=math.nan), "threshold must be a finite float32 >= 0, got nan"),
    "infinite": (changed(threshold=math.inf), "threshold must be a finite float32 >= 0, got inf"),
    "huge": (changed(threshold=10**400), "threshold must be a finite float32 >= 0, got 1000"),
    "negative": (changed(threshold=-0.1), "threshold must be a finite float32 >= 0"),
    "text": (changed(threshold="1"), "threshold must be a number, got '1'"),
    "true": (changed(threshold=True), "threshold must be a number, got True"),
    "null share": (changed(large_share=None), "large_share must be a number, got None"),
    "share 1": (changed(large_share=1.0), r"large_share must lie in \(0, 1\)"),
    "low above": (changed(low=0.25), "low, measured_share and high must ascend"),
    "high below": (changed(high=0.23), "low, measured_share and high must ascend"),
    "nan share": (changed(measured_share=math.nan), "low, measured_share and high must ascend"),
    "one prompt": (changed(verification_prompts=1), "verification_prompts must lie in"),
    "half a step": (changed(calibration_steps=1.5), "calibration_steps must be an integer"),
    "no rounds": (changed(rounds=0), "rounds must lie in"),
    "comparison": (changed(comparison="<"), "comparison must be '>' or '>=', got '<'"),
    "top k": (changed(entropy_top_k=0), "entropy_top_k must lie in"),
    "pair": (changed(pair="0f" * 32), "pair must be a fingerprint"),
    "pair number": (changed(pair=3), "pair must be a fingerprint"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        gr.Calibration.from_json(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        gr.Calibration.from_json(tmp_path / "none.json")
    with pytest.raises(OSError, match="none"):
        EXAMPLE.to_json(tmp_path / "none" / "c.json")


def test_the_fingerprint_is_of_the_pair_not_of_its_loading(tmp_path: Path) -> None:
    want = pair_fingerprint(routed())
    for dtype in (torch.bfloat16, torch.float16):
        loaded = RoutedModel.from_pretrained(
            small_path(), large_path(), dtype=dtype, engine="gather"
        )
        assert loaded.small.dtype == dtype
        assert pair_fingerprint(loaded) == want
        moved = tmp_path / str(dtype)
        loaded.small.save_pretrained(moved)
        loaded.tokenizer.save_pretrained(moved)
        again = RoutedModel.from_pretrained(
            moved, large_path(), dtype=torch.float32, engine="gather"
        )
        assert pair_fingerprint(again) == want


def test_another_pair_is_refused() -> None:
    pair = trained_pair()
    model = routed()
    made = dataclasses.replace(EXAMPLE, pair=pair_fingerprint(model))
    made.check_pair(model)
    swapped = RoutedModel(pair.large, pair.small, pair.tokenizer, CONFIG)
    with pytest.raises(ValueError, match=r"another pair: the small and the large models differ\."):
        made.check_pair(swapped)
    twice = RoutedModel(pair.small, pair.small, pair.tokenizer, CONFIG)
    with pytest.raises(ValueError, match=r"another pair: the large model differs\. .* calibrate"):
        made.check_pair(twice)
    weight = list(model.small.parameters())[-1]
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.view(-1)[0] *= 1.01
        with pytest.raises(ValueError, match=r"another pair: the small model differs\."):
            made.check_pair(model)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    made.check_pair(model)


@pytest.fixture(scope="module")
def command_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """What ``glimprouter calibrate`` printed, and its file."""
    trained_pair()
    path = tmp_path_factory.mktemp("calibrate") / "c.json"
    options = ("--large-share", "0.4", "--dtype", "float32", "--threads", "1")
    limits = (*LIMITS, "--max-step-tokens", "64")
    text = "\n".join([*PROMPTS[:12], "", PROMPTS[0]])
    done = run("calibrate", *PAIR, "-f", "-", "--out", str(path), *options, *limits, input=text)
    assert done.returncode == 0, done.stderr
    return done, path


def test_the_command_finds_what_the_function_finds(command_file: tuple[Any, Path]) -> None:
    done, path = command_file
    result = gr.Calibration.from_json(path)
    assert result == gr.calibrate(routed(), PROMPTS[:12], 0.4)
    assert f"threshold: {result.threshold:.6g} nats (H > tau, full entropy)\n" in done.stdout
    assert "wanted:    40.0 % of the glimpsed steps by the large model\n" in done.stdout
    ends = f"{100 * result.low:.1f} .. {100 * result.high:.1f}"
    assert f"measured:  {100 * result.measured_share:.1f} % (95 %: {ends}) of " in done.stdout
    outside = not result.low <= 0.4 <= result.high
    assert ("lies outside the interval" in done.stdout) == outside
    assert done.stdout.endswith(f"calibration: {path}\n")
    assert "\x1b" not in done.stdout + done.stderr
    stages = [line.split(":")[0] for line in done.stderr.splitlines()]
    rounds = [f"round {number + 1}" for number in range(result.rounds)]
    assert stages[:1] + stages[-1:] == ["unrouted", "verification"]
    assert [stage for stage in stages if stage.startswith("round")] == rounds
    assert os_names(path.parent) == ["c.json"]


def os_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_generate_takes_the_file(
    command_file: tuple[Any, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    _, path = command_file
    result = dataclasses.replace(
        gr.Calibration.from_json(path), comparison=">=", entropy_top_k=2, threshold=0.125
    )
    result.to_json(tmp_path / "c.json")
    words = ("generate", *PAIR, *LIMITS, "-p", PROMPTS[0], "--dtype", "float32")
    files = ("--calibration", str(tmp_path / "c.json"), "--json", str(tmp_path / "t.jsonl"))
    words = (*words, "--drafts", "0")
    status, _, err = ended(monkeypatch, capfd, *words, *files)
    assert status in (0, None), err
    got = gr.Trace.from_jsonl(tmp_path / "t.jsonl")
    want = routed(**result.router_options(), max_step_tokens=512).generate(PROMPTS[:1])[0].trace
    assert got.threshold == 0.125
    route = [(s.entropy, s.model, s.text) for s in got.steps]
    assert route == [(s.entropy, s.model, s.text) for s in want.steps]
    assert max(s.entropy or 0 for s in got.steps) <= math.log(2) + 1e-6


GENERATE = ("generate", *PAIR, *LIMITS, "-p", "a")
CALIBRATE = ("calibrate", *PAIR, *LIMITS, "-f", "TMP/prompts.txt", "--out", "TMP/out.json")
TWICE = "--{} and --calibration exclude each other"
BAD_COMMANDS: dict[str, tuple[Sequence[str], str]] = {
    # The default value, too, when it is typed.
    "threshold": ((*GENERATE, "--calibration", "FILE", "--threshold", "1"), TWICE),
    "comparison": ((*GENERATE, "--calibration", "FILE", "--comparison", ">"), TWICE),
    "entropy-top-k": ((*GENERATE, "--calibration", "FILE", "--entropy-top-k", "20"), TWICE),
    "no file": ((*GENERATE, "--calibration", "TMP/none.json"), "No such file .*none.json"),
    "foreign": ((*GENERATE, "--calibration", "TMP/prompts.txt"), f"prompts.txt {FOREIGN}"),
    "other pair": (
        (*GENERATE, "--large", str(small_path()), "--dtype", "float32", "--calibration", "FILE"),
        "belongs to another pair: the large model differs",
    ),
    "share": ((*CALIBRATE, "--large-share", "1"), r"large_share must lie in \(0, 1\)"),
    "few": (CALIBRATE, "at least 4 different prompts .* got 2"),
    "prompts": ((*CALIBRATE, "-f", "TMP/none.txt"), "cannot read the prompts from .*none.txt"),
    "out": (
        (*CALIBRATE, "--out", "TMP"),
        "--out .* cannot be written: it is a directory; give a file",
    ),
    "directory": ((*CALIBRATE, "--small", "TMP"), "--small .* has no config.json"),
    "dtype": ((*CALIBRATE, "-f", "TMP/four.txt", "--dtype", "int1"), "--dtype must be one of"),
}


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_a_bad_command_is_one_line(
    command_file: tuple[Any, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    words, message = BAD_COMMANDS[name]
    (tmp_path / "prompts.txt").write_text("a\n\nb\na\n", encoding="utf-8")
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    file = str(command_file[1])
    words = [w.replace("TMP", str(tmp_path)).replace("FILE", file) for w in words]
    before = os_names(tmp_path)
    status, out, err = ended(monkeypatch, capfd, *words)
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: .*{message.format(name)}.*\n", err), err
    assert os_names(tmp_path) == before
