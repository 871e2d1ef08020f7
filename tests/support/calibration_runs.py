"""The embedded pair as calibrations run it."""

from __future__ import annotations

from typing import Any

import glimprouter as gr
from glimprouter.demo_pair.task import held_out_problems
from glimprouter.hf import RoutedModel
from hf_pairs import trained_pair

CONFIG = gr.RouterConfig(
    temperature=0.0, max_think_tokens=320, max_answer_tokens=16, max_step_tokens=64
)
PROMPTS = [problem.prompt for problem in held_out_problems(48, seed=7)]


def routed(**changes: Any) -> RoutedModel:
    pair = trained_pair()
    config = CONFIG.replace(**changes)
    return RoutedModel(pair.small, pair.large, pair.tokenizer, config, drafts=0)
