"""Traces: the record of a routed chain of thought, its file, its page, and its sums."""

from glimprouter.trace.record import SCHEMA_VERSION, Trace, TraceStep, parse_trace

__all__ = ["SCHEMA_VERSION", "Trace", "TraceStep", "parse_trace"]
