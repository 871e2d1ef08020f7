"""Commands of the documentation that start servers of vLLM, and those of the compose file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

_ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load(
    (_ROOT / "examples" / "vllm" / "compose.yaml").read_text(encoding="utf-8")
)


def documented(command: str) -> list[list[str]]:
    """Arguments of each command of docs/vllm.md that begins so, environment variables left out."""
    text = (_ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [line.partition(f"{command} ")[2] for line in lines if f"{command} " in line]
    return [shlex.split(line, comments=True) for line in found]


def composed(command: str) -> dict[str, list[str]]:
    """Arguments of each service whose entry point is that command, by name."""
    return {
        name: service["command"]
        for name, service in COMPOSE["services"].items()
        if service["entrypoint"] == command.split()
    }
