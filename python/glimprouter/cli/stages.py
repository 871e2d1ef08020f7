"""Progress of work in stages: a bar a stage on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

# Stage, done (0 at its start), of so many.
Report = Callable[[str, int, int], None]


@contextmanager
def stages(console: Console, what: str) -> Iterator[Report]:
    """Yields what is to be told of the progress.

    Args:
        console: Where it goes.
        what: What is counted, as in ``"prompts"``.
    """
    if console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = ("{task.description:12}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            tasks = {}

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(stage, total=total)
                bar.update(tasks[stage], completed=done)

            yield advance
        return
    start = time.perf_counter()

    def report(stage: str, done: int, total: int) -> None:
        nonlocal start
        if done == 0:
            start = time.perf_counter()
        elif done == total:
            seconds = time.perf_counter() - start
            console.print(f"{stage}: {total} {what} in {seconds:.1f} s", soft_wrap=True)

    yield report
