"""What the capture of graphs takes while models are warmed up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from glimprouter.hf.graphs import recorders

# Seconds that so many sizes of a model may take on an H200: wanted of the 4B.
GOAL_SIZES, GOAL_SECONDS, GOAL_DEVICE = 10, {"4B": 10.0}, "H200"

Found = dict[str, dict[str, float]]


@contextmanager
def counted(models: Mapping[str, Any], recorder: Any = recorders.CudaRecorder) -> Iterator[Found]:
    """Adds up, by model, the sizes that are captured in the block and the seconds that takes.

    A size is rehearsed once and captured once. Both count; the eager pass before them does not.

    Args:
        models: By name, those whose passes are captured.
        recorder: A class of recorders.
    """
    names = {id(model): name for name, model in models.items()}
    found: Found = {name: {"sizes": 0, "seconds": 0.0} for name in models}
    before = {method: getattr(recorder, method) for method in ("rehearse", "record")}

    def timed(method: str) -> Callable[..., Any]:
        def call(self: Any, run: Any) -> Any:
            start = time.perf_counter()
            result = before[method](self, run)
            own = found.get(names.get(id(run.__self__._model), ""))
            if own is not None:
                own["sizes"] += method == "record"
                own["seconds"] += time.perf_counter() - start
            return result

        return call

    for method in before:
        setattr(recorder, method, timed(method))
    try:
        yield found
    finally:
        for method, own in before.items():
            setattr(recorder, method, own)


def rows_of(found: Found, shapes: Mapping[str, str], device: str) -> list[dict[str, Any]]:
    """A row for each model: sizes, seconds, and the goal where its shape has one.

    Args:
        found: What was counted.
        shapes: Names of the shapes of these models.
        device: Name of the device. On another GPU than the goal's, nothing is met or missed.
    """
    rows = []
    for name, own in found.items():
        row: dict[str, Any] = {"model": shapes[name], **own}
        if own["sizes"]:
            row["seconds_of_ten_sizes"] = GOAL_SIZES * own["seconds"] / own["sizes"]
        if shapes[name] in GOAL_SECONDS:
            goal = GOAL_SECONDS[shapes[name]]
            row |= {"goal_seconds_of_ten_sizes": goal, "goal_device": GOAL_DEVICE, "met": None}
            if own["sizes"] and GOAL_DEVICE in device:
                row["met"] = row["seconds_of_ten_sizes"] <= goal
        rows.append(row)
    return rows
