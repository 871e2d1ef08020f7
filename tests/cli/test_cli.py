"""The command line by its own words: what it prints where, how it ends, what it leaves behind.

A process imports torch for seconds, so runs are shared by module fixtures, and the errors that need
no process of their own are made in this one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import glimprouter as gr
from cli_runs import PAIR, Finished, command, ended, run
from glimprouter.demo_pair import small_path

PROMPT = "Reduce 18,39,12"
# The embedded pair has a short context: the default answer budget would not fit.
GENERATE = ("generate", *PAIR, "--threshold", "0.5", "--temperature", "0")
LIMITS = ("--max-answer-tokens", "16", "--max-think-tokens", "200")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    """A whole run of ``generate`` with its trace."""
    trace = tmp_path_factory.mktemp("generate") / "trace.jsonl"
    done = run(*GENERATE, *LIMITS, "--prompt", PROMPT, "--json", str(trace))
    assert done.returncode == 0, done.stderr
    return done, trace


def test_generate_prints_the_text_and_who_wrote_it(generated: tuple[Finished, Path]) -> None:
    done, path = generated
    trace = gr.Trace.from_jsonl(path)
    assert "\x1b" not in done.stdout, "no colours where the output is no terminal"
    marks = re.findall(r"\[(small|large) H=(\d+\.\d{3})\]", done.stdout)
    written = [(s.model, f"{s.entropy:.3f}") for s in trace.steps if s.entropy is not None]
    assert marks[: len(written)] == written
    assert done.stdout.count("[answer]") == 1
    flat = "".join(done.stdout.split())
    for step in trace.steps:
        assert "".join(step.text.split()) in flat
    assert "".join(trace.answer.split()) in flat


def test_generate_sums_up_on_stderr(generated: tuple[Finished, Path]) -> None:
    done, path = generated
    trace = gr.Trace.from_jsonl(path)
    large = sum(step.model == "large" for step in trace.steps)
    first, second = done.stderr.splitlines()[-2:]
    assert first.startswith(f"{len(trace.steps)} steps, {large} by the large model (")
    assert f"; {trace.total_tokens} tokens in " in first
    assert second == f"trace: {path}"


def test_generate_leaves_a_whole_trace(generated: tuple[Finished, Path]) -> None:
    _, path = generated
    trace = gr.Trace.from_jsonl(path)
    assert (trace.prompt, trace.threshold, trace.error) == (PROMPT, 0.5, None)
    assert trace.end_reason in ("eos", "answer_budget")
    assert len(trace.steps) > 1
    for step in trace.steps:
        if step.entropy is not None:
            assert step.model == ("large" if step.entropy > 0.5 else "small")
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_generate_reads_the_prompt_from_a_file(
    generated: tuple[Finished, Path], tmp_path: Path, source: str
) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    where = str(tmp_path / "prompt.txt") if source == "file" else "-"
    typed = PROMPT if source == "stdin" else None
    done = run(*GENERATE, *LIMITS, "-f", where, input=typed)
    assert (done.returncode, done.stdout) == (0, generated[0].stdout)


BAD_CALLS: dict[str, tuple[Sequence[str], str]] = {
    "no prompt": ((), "exactly one of --prompt TEXT and -f FILE"),
    "two prompts": (("-p", "a", "-f", "b.txt"), "exactly one of --prompt TEXT and -f FILE"),
    "empty prompt": (("-p", " "), "the prompt is empty; give some text"),
    "missing file": (("-f", "TMP/none.txt"), "cannot read the prompts from .*none.txt"),
    "binary file": (("-f", "TMP/binary.txt"), "cannot read the prompts from .*codec can't decode"),
    "surrogate": (("-p", "a\udcff", *LIMITS), "the prompt is no valid Unicode text"),
    "missing directory": (("-p", "a", "--small", "TMP/none"), "--small .*none is not a directory"),
    "a file": (("-p", "a", "--large", "TMP/binary.txt"), "--large .* is not a directory; give a"),
    "no config": (("-p", "a", "--large", "TMP/empty"), "--large .*empty has no config.json"),
    "broken model": (("-p", "a", "--large", "TMP/broken"), "cannot load .*broken"),
    "nan": (("-p", "a", "--threshold", "nan"), r"threshold must lie in \[0, inf\], got nan"),
    "negative": (("-p", "a", "--threshold", "-1"), "threshold must lie in"),
    "top p": (("-p", "a", "--top-p", "1.5"), r"top_p must lie in \(0, 1\]"),
    "comparison": (("-p", "a", "--comparison", "<"), "comparison must be one of"),
    "manual": (("-p", "a", "--route", "manual"), "--route manual is for programs"),
    "dtype": (("-p", "a", "--dtype", "float99"), "--dtype must be one of auto, .* got 'float99'"),
    "json directory": (("-p", "a", "--json", "TMP"), "--json .* it is a directory; give a file"),
    "json nowhere": (
        ("-p", "a", "--json", "TMP/none/t.jsonl"),
        "none/t.jsonl cannot be written: its directory does not exist",
    ),
    "device": (("-p", "a", "--device", "xpu:0"), r"device must be one of .*got 'xpu:0'"),
    "execution": (("-p", "a", "--execution", "fast"), 'execution must be one of "auto"'),
    "memory": (("-p", "a", "--kv-memory", "8 gib of it"), "--kv-memory must be a size such as"),
    "no memory": (("-p", "a", "--kv-memory", "0"), "--kv-memory must be a size such as"),
    "too much thinking": (
        ("-p", "a", "--max-think-tokens", "5000"),
        r"max_think_tokens=5000 does not fit.* of 1024; lower it, or leave it unset",
    ),
    "no prompts": (("-f", "TMP/blank.txt"), "blank.txt holds no prompt; give one a line"),
    "bad line": (("-f", "TMP/bad.jsonl"), "bad.jsonl, line 3 is no JSON"),
    "long prompt": (("-p", "9" * 2000, *LIMITS), r"shorten the prompt or lower max_answer_tokens"),
    "marker": (("-p", "a", "--think-end", "<nope>"), "--think-start and --think-end go together"),
    "no marker": (("-p", "a", "--think-start", "", "--think-end", ""), "a marker is empty"),
    "thinking": (("-p", "a", "--thinking", "loud"), '--thinking: .* one of "auto", "think"'),
    "template": (("-p", "a", "--chat-template-kwargs", "on"), "--chat-template-kwargs is no JSON"),
    "list": (("-p", "a", "--chat-template-kwargs", "[]"), "must be a JSON object, got"),
}


@pytest.mark.parametrize(("extra", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_an_error_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    extra: Sequence[str],
    message: str,
) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('"a"\n\n{"prompt": \n', encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    words = [word.replace("TMP", str(tmp_path)) for word in extra]
    status, out, err = ended(monkeypatch, capfd, *GENERATE, *words)
    assert status == 2
    assert out == ""
    assert re.fullmatch(rf"error: (?s:.*){message}.*\n", err), err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


USAGE = {
    "threshold as text": (("generate", *PAIR, "-p", "a", "--threshold", "x"), "--threshold"),
    "no pair": (("generate", "-p", "a"), "--small"),
    "no problems": (("demo", "--problems", "0"), "--problems"),
    "unknown command": (("dream",), "dream"),
}


@pytest.mark.parametrize(("words", "message"), USAGE.values(), ids=USAGE)
def test_wrong_usage(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: Sequence[str],
    message: str,
) -> None:
    """What typer itself refuses ends alike: 2, on stderr, no traceback."""
    status, out, err = ended(monkeypatch, capfd, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_an_unknown_benchmark(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = ended(monkeypatch, capfd, "bench", "nothing")
    assert (status, out) == (2, "")
    choices = "glimpse, sampling, step, decode, kv, batch, hybrid, latent, passes"
    assert err == f"error: unknown benchmark 'nothing': choose from {choices}\n"


def test_version(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    want = (0, f"glimprouter {gr.__version__}\n", "")
    assert ended(monkeypatch, capfd, "--version") == want


@pytest.fixture(scope="module")
def endless_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options for two models with random weights that go on for a million tokens."""
    words: list[str] = []
    for name, layers in (("small", 1), ("large", 2)):
        torch.manual_seed(layers + 4)
        config = Qwen3Config(
            vocab_size=302,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=2_000_000,
            **{f"{kind}_token_id": None for kind in ("bos", "eos", "pad")},
        )
        directory = tmp_path_factory.mktemp(name)
        Qwen3ForCausalLM(config).save_pretrained(directory)
        AutoTokenizer.from_pretrained(small_path()).save_pretrained(directory)
        words += [f"--{name}", str(directory)]
    limits = ("--max-think-tokens", "1000000", "--max-step-tokens", "5", "--no-repetition-guard")
    return ("generate", *words, "--temperature", "0", "--threshold", "0", *limits)


def test_an_interrupt_leaves_the_trace_so_far(
    endless_pair: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    process = subprocess.Popen(
        command(*endless_pair, "-p", "Why?", "--json", str(path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    steps_seen = 0
    while steps_seen < 4:  # it is in the middle of writing
        line = process.stdout.readline()
        assert line, "it ended by itself"
        steps_seen += line.startswith("[")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == [f"trace: {path}", "interrupted"]
    trace = gr.Trace.from_jsonl(path)
    if trace.end_reason != "interrupted":  # it came within a call, or while text was read
        assert trace.end_reason == "error"
        assert "interrupted" in str(trace.error)
    assert len(trace.steps) >= 4
    assert all(step.end_reason == "cap" for step in trace.steps[:-1])
    assert trace.total_tokens == sum(step.num_tokens for step in trace.steps)


def test_demo(tmp_path: Path) -> None:
    done = run("demo", "--quick", "--svg", str(tmp_path / "demo.svg"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    rows = re.findall(
        r"^(routed|small alone|large alone) +(\d+\.\d) % +\d+\.\d \.\. \d+\.\d +\d+\.\d\d"
        r" +(\d+\.\d) % +(\d+\.\d) % +\d+$",
        done.stdout,
        re.MULTILINE,
    )
    assert [row[0] for row in rows] == ["routed", "small alone", "large alone"]
    assert rows[1][2:] == ("0.0", "0.0")
    assert rows[2][2:] == ("100.0", "100.0")
    assert 0.0 < float(rows[0][2]) < 100.0
    assert "step  writer  H (nats)  tokens" in done.stdout
    assert re.search(r"^ +0  (small|large) +\d\.\d{3} +\d+ +\d+\.\d  \S", done.stdout, re.MULTILINE)
    for name in ("small alone", "large alone"):
        assert f"Accuracy, routed minus {name}: " in done.stdout
        assert f"Time a token at batch 1, routed over {name}: " in done.stdout
    assert "(A short run: the figures above mean little.)" in done.stdout
    assert "routed" in (tmp_path / "demo.svg").read_text(encoding="utf-8")


def test_bench(tmp_path: Path) -> None:
    done = run("bench", "--quick", "--json", str(tmp_path / "bench.json"))
    assert done.returncode == 0, done.stderr
    assert "torch.sum" in done.stdout
    report = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert set(report) == {"machine", "sections"}
    assert report["machine"]["glimprouter"]["version"] == gr.__version__
    assert report["machine"]["logical_processors"] >= 1
    assert len(report["sections"]) >= 3
    for section in report["sections"]:
        assert section["title"]
        assert section["rows"]
        assert all(row["name"] and row["microseconds"] > -1.0 for row in section["rows"])
    rows = [row for section in report["sections"] for row in section["rows"]]
    gathered = {row["name"]: row["gathered_bytes"] for row in rows}
    for k in (8, 64, 512):  # a DynamicCache joins keys and values, of two heads of 32, in 28 layers
        assert gathered[f"k = {k}: pages"] == 0
        joined = gathered[f"k = {k}: DynamicCache"] - gathered[f"k = {k}: gathering engine"]
        assert joined == 28 * 2 * 2 * (2048 + k) * 32 * 4


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "{blocked}":
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Blocker())
"""
MISSING = {
    "typer": ("--version",),
    "rich": ("demo", "--quick"),
    "torch": ("bench", "--quick"),
    "transformers": (*GENERATE, *LIMITS, "-p", PROMPT),
    "matplotlib": ("evaluate", "report", "."),
    "scipy": ("evaluate", "report", "."),
    "sklearn": ("evaluate", "report", "."),
}
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def test_the_server_has_an_extra_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(blocked="uvicorn"), encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    done = run("serve", "--small", "x", "--large", "y", env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(
        "needs uvicorn, which is not installed here. Install the extra that has it: pip install"
        ' "glimprouter[serve]"\n'
    )
    assert run("--version", env=environment).returncode == 0


@pytest.mark.parametrize(("blocked", "words"), MISSING.items(), ids=MISSING)
def test_a_missing_extra_is_one_line(tmp_path: Path, blocked: str, words: Sequence[str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(blocked=blocked), encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = run(*words, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (2, "")
    extra = "evaluate" if "evaluate" in words else "demo"
    assert done.stderr == (
        f"glimprouter: this command needs {DISTRIBUTIONS.get(blocked, blocked)}, which is not"
        " installed here. Install the extra that has it: pip install"
        f' "glimprouter[{extra}]"\n'
    )
