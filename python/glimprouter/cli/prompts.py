"""Prompts as the commands read them: from an option, a file of lines, or JSON lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TypeAlias

from glimprouter.cli.errors import UserError

Prompt: TypeAlias = str | list[dict[str, Any]]  # one user message, or a chat


def read_prompts(file: Path) -> list[Prompt]:
    """The prompts of a file, in order.

    In a file whose name ends in ``.jsonl`` each line is JSON: a string, a chat (a list of messages
    with "role" and "content"), or an object with "prompt" (a string) or "messages" (a chat). In any
    other file, and on standard input (``-``), each line is one user message. Lines without text are
    skipped.

    Args:
        file: The path, or ``-``.

    Raises:
        UserError: It cannot be read, holds no prompt, or a line is none.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts from {file}: {error}") from error
    # Not splitlines(): a message may hold separators that are no newline.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise UserError(f"{file} holds no prompt; give one a line")
    if file.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_parse(line, f"{file}, line {number}") for number, line in lines]


def one_or_file(prompt: str | None, file: Path | None) -> list[Prompt]:
    """The prompts of exactly one of two options.

    Raises:
        UserError: None or both are given, or there is no prompt.
    """
    if (prompt is None) == (file is None):
        raise UserError("give the prompt by exactly one of --prompt TEXT and -f FILE")
    if file is not None:
        return read_prompts(file)
    if not prompt or not prompt.strip():
        raise UserError("the prompt is empty; give some text")
    return [prompt]


def _parse(line: str, where: str) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON: {error}") from error
    if isinstance(value, dict):
        named = [name for name in ("prompt", "messages") if name in value]
        if len(named) != 1:
            raise UserError(
                f'{where}: an object needs exactly one of "prompt" and "messages", got'
                f" {sorted(value)}"
            )
        value = value[named[0]]
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return value
    raise UserError(
        f"{where}: a prompt is a string with some text, or a list of messages (objects with role"
        " and content)"
    )
