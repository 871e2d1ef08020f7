"""Pairs on the devices of this build, and what they write."""

from __future__ import annotations

from typing import Any

import glimprouter as gr
import hf_pairs
from glimprouter.hf import Result

DEVICES = [device for device in gr.build_info()["devices"] if device != "cpu"]


def pair_of(family: str) -> hf_pairs.Pair:
    """Gemma 2 has its softcap in eager attention only."""
    return hf_pairs.random_pair(family, attention="eager" if family == "gemma2" else "sdpa")


def written(results: list[Result]) -> list[Any]:
    return [
        (result.token_ids, [(s.model, s.text, s.end_reason) for s in result.trace.steps])
        for result in results
    ]
