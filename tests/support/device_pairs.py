"""Pairs on the devices of this build, and what they write."""

from __future__ import annotations

from typing import Any

import glimprouter as gr
import hf_pairs
from glimprouter.hf import Result

# The second one of the emulator is like the first; two at once are tested in test_two_devices.py.
DEVICES = [device for device in gr.build_info()["devices"] if device not in ("cpu", "simt:1")]


def pair_of(family: str) -> hf_pairs.Pair:
    """Gemma 2 has its softcap in eager attention only."""
    return hf_pairs.random_pair(family, attention="eager" if family == "gemma2" else "sdpa")


def written(results: list[Result]) -> list[Any]:
    return [
        (result.token_ids, [(s.model, s.text, s.end_reason) for s in result.trace.steps])
        for result in results
    ]
