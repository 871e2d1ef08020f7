"""Runs one solution in a process of its own, under limits. ``code_runner`` starts it as a script.

    python -I code_child.py SOLUTION SECONDS MEGABYTES [FUNCTION]

Without a function the solution is a program that reads stdin. With one, each line of stdin is an
argument as JSON, and what the function (of a class ``Solution`` where there is one) returns is
written as JSON. What that writes to stdout itself goes nowhere.
"""

from __future__ import annotations

import io
import json
import resource
import sys
from typing import Any

# What solutions take for granted on the platforms that the problems come from.
PRELUDE = """
import bisect, collections, functools, heapq, itertools, math, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
from builtins import *
"""
LARGEST_OUTPUT = 64 * 2**20


def limit(seconds: int, megabytes: int) -> None:
    """Bounds processor time, memory and the size of files for the rest of this process."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_OUTPUT, LARGEST_OUTPUT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def call(names: dict[str, Any], function: str) -> None:
    """Calls the function with the arguments on stdin and writes what it returns."""
    out, sys.stdout = sys.stdout, io.StringIO()
    arguments = [json.loads(line) for line in sys.stdin.read().split("\n") if line.strip()]
    owner = names["Solution"]() if "Solution" in names else None
    result = (getattr(owner, function) if owner is not None else names[function])(*arguments)
    out.write(json.dumps(result))


def main() -> None:
    """Sets the limits, then runs."""
    path, seconds, megabytes, *function = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        source = file.read()
    limit(int(seconds), int(megabytes))
    sys.setrecursionlimit(50_000)
    names: dict[str, Any] = {"__name__": "__main__" if not function else "solution"}
    exec(PRELUDE, names)
    exec(compile(source, "solution.py", "exec"), names)
    if function:
        call(names, function[0])


if __name__ == "__main__":
    main()
