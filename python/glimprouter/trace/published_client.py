"""The result files of the published GlimpRouter client, read as traces.

The client leaves a JSON list with an object for every step, in order::

    step_id                  from 0
    step_str                 the text; the delimiter was the server's stop string and is not in it
    score                    entropy of the glimpse in nats, over the 20 most likely tokens;
                             null where the route was forced
    small_model_step         the small model's text, or null
    base_model_step          the large ("base") model's text, or null
    num_output_tokens_small  the small model's tokens, or null
    num_output_tokens_base   the large model's tokens, or null
    final_num_output_tokens  tokens of the text that was kept
    justification            the glimpsed token as text, or null; not part of a trace
    stop_reason              on the last step of the thinking only: "finished", "budget"

After the step with the stop reason the client appends one more object, the answer, with the same
fields. A client that failed on the way writes the steps so far, without a stop reason. The prompt,
tau, the seed and the times are not in the file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from glimprouter.trace import json_fields
from glimprouter.trace.json_fields import Kind
from glimprouter.trace.record import Trace, TraceStep, parse_trace

__all__ = [
    "TraceFormat",
    "detect_format",
    "parse_published_client",
    "read_any_trace",
    "read_published_client",
    "threshold_bounds",
]

TraceFormat = Literal["glimprouter", "published_client"]


def _is_score(value: Any) -> bool:
    # The client's own sum gives NaN where one of its probabilities rounds to 0.
    return value is None or (json_fields.is_number(value) and (math.isnan(value) or value >= 0))


_COUNT_OR_NULL = Kind(
    "a whole number >= 0 or null", lambda value: value is None or json_fields.is_whole(value)
)
_REQUIRED = {
    "step_id": json_fields.COUNT,
    "step_str": json_fields.TEXT,
    "score": Kind("an entropy in nats (a number >= 0) or null", _is_score),
    "small_model_step": json_fields.TEXT_OR_NULL,
    "base_model_step": json_fields.TEXT_OR_NULL,
    "num_output_tokens_small": _COUNT_OR_NULL,
    "num_output_tokens_base": _COUNT_OR_NULL,
    "final_num_output_tokens": json_fields.COUNT,
    "justification": json_fields.TEXT_OR_NULL,
}
_EXPECTED = (
    "expected a JSON list of objects, one a step, with the fields "
    f"{', '.join(_REQUIRED)}, and stop_reason on the last step of the thinking"
)


def detect_format(text: str, name: str) -> TraceFormat:
    """Tells a trace of glimprouter (JSON lines) from a result file of the published client.

    Looks at the first character only; the readers check the rest.

    Args:
        text: The whole file, or its beginning.
        name: Name of the file, for the message.

    Raises:
        ValueError: It is neither.
    """
    first = text.lstrip(" \t\r\n")[:1]
    if first == "{":
        return "glimprouter"
    if first == "[":
        return "published_client"
    found = "is empty" if not first else f"begins with {first!r}"
    raise ValueError(
        f"{name} {found}; expected a trace of glimprouter (JSON lines, first an object) or a "
        "result of the published client (a JSON list)"
    )


def read_any_trace(path: str | Path) -> tuple[Trace, TraceFormat]:
    """Reads a trace of either format; the file is read once, so it may be a pipe.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is of neither format, or damaged.
    """
    text = json_fields.read_text(Path(path))
    kind = detect_format(text, str(path))
    parse = parse_trace if kind == "glimprouter" else parse_published_client
    return parse(text, str(path)), kind


def read_published_client(path: str | Path) -> Trace:
    """Reads a result file of the published client.

    Raises:
        OSError: The file cannot be read.
        ValueError: See :func:`parse_published_client`.
    """
    return parse_published_client(json_fields.read_text(Path(path)), str(path))


def parse_published_client(text: str, name: str) -> Trace:
    """Reads the text of a result file of the published client.

    A step was written by the large model when ``base_model_step`` holds text, or is the only one
    that is not null (the model may have stopped at once); else by the small one.

    Args:
        text: The whole file.
        name: Name of the file, for messages.

    Returns:
        The trace. What the file does not hold is "not recorded": ``threshold`` NaN, all seconds 0,
        no prompt, seed 0. The ``end_reason`` is the client's ``stop_reason``, or ``"interrupted"``
        with an ``error`` where there is none.

    Raises:
        ValueError: The file is foreign, cut short, or a field is missing or of another type.
    """
    records = _parse_records(text, name)
    thinking, answer = _split(records, name)
    stop_reason = thinking[-1].get("stop_reason")
    trace = Trace(
        threshold=math.nan,
        steps=[_step(record) for record in thinking],
        total_tokens=sum(record["final_num_output_tokens"] for record in records),
        end_reason="interrupted" if stop_reason is None else stop_reason,
    )
    if stop_reason is None:
        trace.error = "the client stopped before the end of the thinking (no step has stop_reason)"
    if answer is not None:
        trace.answer = answer["step_str"]
        trace.answer_model = _writer(answer)
        trace.answer_tokens = answer["final_num_output_tokens"]
    return trace


def threshold_bounds(trace: Trace) -> tuple[float, float]:
    """Where tau must have lain for the routes that were taken, in nats.

    Returns:
        (low, high): largest entropy of a step that stayed with the small model (0 if none did) and
        smallest of one that went to the large (infinity if none did). Not in order where the routes
        do not follow one threshold.
    """
    glimpsed = [(step.model, step.entropy) for step in trace.steps if step.entropy is not None]
    low = max((entropy for model, entropy in glimpsed if model == "small"), default=0.0)
    high = min((entropy for model, entropy in glimpsed if model == "large"), default=math.inf)
    return low, high


def _parse_records(text: str, name: str) -> list[dict[str, Any]]:
    try:
        records = json_fields.parse(text)
    except ValueError as error:
        raise ValueError(
            f"{name} is no result of the published client, or is cut short: it is not JSON "
            f"({error})"
        ) from error
    if not isinstance(records, list):
        raise ValueError(f"{name} is no result of the published client: {_EXPECTED}")
    if not records:
        raise ValueError(f"{name} holds no steps: the published client failed before its first")
    for index, record in enumerate(records):
        _check(record, index, f"{name} is no valid result of the published client: object {index}")
    return records


def _check(record: Any, index: int, where: str) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is {json_fields.shown(record)}; {_EXPECTED}")
    if missing := [field for field in _REQUIRED if field not in record]:
        raise ValueError(f"{where} lacks {missing[0]!r}; {_EXPECTED}")
    for field, kind in _REQUIRED.items():
        json_fields.check(record[field], kind, f"{where}: {field!r}")
    if record["step_id"] != index:
        raise ValueError(
            f"{where}: 'step_id' must be {index}, got {record['step_id']}; steps are missing, "
            "repeated or out of order"
        )
    if record["small_model_step"] is None and record["base_model_step"] is None:
        raise ValueError(f"{where}: one of 'small_model_step', 'base_model_step' must be text")
    if "stop_reason" in record:
        json_fields.check(record["stop_reason"], json_fields.TEXT, f"{where}: 'stop_reason'")


def _split(
    records: list[dict[str, Any]], name: str
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The steps of the thinking, and the answer behind the step with the stop reason."""
    ends = [index for index, record in enumerate(records) if "stop_reason" in record]
    if not ends:
        return records, None
    thinking, rest = records[: ends[0] + 1], records[ends[0] + 1 :]
    if len(rest) > 1 or len(ends) > 1:
        raise ValueError(
            f"{name} is no valid result of the published client: behind the step with stop_reason "
            f"(object {ends[0]}) expected at most the answer, got {len(rest)} objects"
            + (f", one more with stop_reason (object {ends[1]})" if len(ends) > 1 else "")
        )
    return thinking, rest[0] if rest else None


def _writer(record: dict[str, Any]) -> Literal["small", "large"]:
    return "large" if record["base_model_step"] or record["small_model_step"] is None else "small"


def _step(record: dict[str, Any]) -> TraceStep:
    score = record["score"]
    return TraceStep(
        index=record["step_id"],
        model=_writer(record),
        # Adding 0 turns the client's -0.0 into 0.0.
        entropy=None if score is None or not math.isfinite(score) else float(score) + 0.0,
        threshold=math.nan,
        text=record["step_str"],
        num_tokens=record["final_num_output_tokens"],
        seconds=0.0,
        end_reason=record.get("stop_reason", "none"),
    )
