"""What the README shows is run: its Python blocks as they stand, its commands by their own words.

The two commands that install are run by `.ci/readme_commands` in a fresh clone.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from glimprouter.demo_pair import large_path, small_path
from glimprouter.demo_pair.task import held_out_problems

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [text for language, text in BLOCKS if language == "bash"]
INSTALLING = ("# install and run the demo\n", "# run the tests\n")


def run_python(*arguments: str, cwd: Path) -> str:
    finished = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("block", PYTHON, ids=lambda text: text.splitlines()[-1][:40])
def test_python_block(block: str, tmp_path: Path) -> None:
    assert run_python("-c", block, cwd=tmp_path).strip()


def test_command_blocks_are_the_known_ones() -> None:
    """A new block needs a test; the installing ones are looked for by their first lines."""
    firsts = [text.splitlines(keepends=True)[0] for text in COMMANDS]
    assert firsts[:2] == list(INSTALLING)
    assert [first.split()[:2] for first in firsts[2:]] == [
        [".venv/bin/glimprouter", "generate"],
        [".venv/bin/glimprouter", "trace"],
        [".venv/bin/glimprouter", "calibrate"],
        [".venv/bin/glimprouter", "serve"],
        [".venv/bin/glimprouter", "bench"],
    ]


def test_generate_and_trace_commands(tmp_path: Path) -> None:
    words = shlex.split(COMMANDS[2])
    words[words.index("DIR")] = str(small_path())
    words[words.index("DIR")] = str(large_path())
    words[words.index("TEXT")] = "Reduce 18,39,12"
    # The embedded pair has a short context: the default answer budget would not fit.
    options = ["--max-answer-tokens", "16"]
    printed = run_python("-m", "glimprouter", *words[1:], *options, cwd=tmp_path)
    assert printed.strip()
    trace = shlex.split(COMMANDS[3])
    assert "large" in run_python("-m", "glimprouter", *trace[1:], cwd=tmp_path)
    assert "</html>" in (tmp_path / "trace.html").read_text(encoding="utf-8")


def test_calibrate_command(tmp_path: Path) -> None:
    words = shlex.split(COMMANDS[4])
    words[words.index("DIR")] = str(small_path())
    words[words.index("DIR")] = str(large_path())
    prompts = tmp_path / "prompts.txt"
    problems = held_out_problems(8, seed=3)
    prompts.write_text("".join(f"{problem.prompt}\n" for problem in problems))
    words[words.index("PROMPTS")] = str(prompts)
    options = ["--max-answer-tokens", "16", "--max-think-tokens", "300", "--temperature", "0"]
    assert run_python("-m", "glimprouter", *words[1:], *options, cwd=tmp_path).strip()
    assert (tmp_path / "calibration.json").exists()


def test_serve_command(tmp_path: Path) -> None:
    words = shlex.split(COMMANDS[5])
    words[words.index("DIR")] = str(small_path())
    words[words.index("DIR")] = str(large_path())
    words[words.index("8000")] = "0"  # a free one
    server = subprocess.Popen(
        [sys.executable, "-m", "glimprouter", *words[1:]],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        with urllib.request.urlopen(f"{address}/v1/models") as answer:
            assert b'"id":"glimprouter"' in answer.read()
    finally:
        server.terminate()
        assert server.wait() == 0


def test_bench_command(tmp_path: Path) -> None:
    """Of the command's sections the first two: all of them run in tests/cli."""
    words = [*shlex.split(COMMANDS[6])[1:], "glimpse", "step", "--quick"]
    assert "torch.sum" in run_python("-m", "glimprouter", *words, cwd=tmp_path)


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (README.parent / target).exists(), target
