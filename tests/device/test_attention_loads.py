"""Attention whose keys and values are copied ahead of their use, in a pair: the same bits."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest

import glimprouter as gr
from device_pairs import DEVICES, pair_of, written
from glimprouter import kv
from glimprouter.hf import Result, RoutedModel
from glimprouter.hf.pair.devices import torch_device

pytestmark = pytest.mark.device


def generated(family: str, device: str, drafts: int) -> list[Result]:
    """Graphs, where there are any, are captured anew: they keep the loads of their capture."""
    pair = pair_of(family)
    home = torch_device(device)
    models = [m if home == "cpu" else copy.deepcopy(m).to(home) for m in (pair.small, pair.large)]
    config = gr.RouterConfig(
        threshold=pair.threshold,
        temperature=0.8,
        repetition_guard=False,
        max_step_tokens=6,
        max_think_tokens=20,
        max_answer_tokens=4,
    )
    model = RoutedModel(
        *models, pair.tokenizer, config, engine="paged", device=device, drafts=drafts
    )
    return model.generate(pair.prompts[:3])


@pytest.mark.needs_device
@pytest.mark.parametrize("drafts", [0, 4])
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_pair_writes_the_same(device: str, family: str, drafts: int) -> None:
    """Also where several tokens of a sequence are verified at once; with windows and caps."""
    before = kv.set_attention_loads("direct")
    try:
        want = generated(family, device, drafts)
        assert kv.set_attention_loads("staged") == "direct"
        got = generated(family, device, drafts)
    finally:
        kv.set_attention_loads(before)
    assert written(got) == written(want)
    entropies = [[[s.entropy for s in r.trace.steps] for r in results] for results in (got, want)]
    assert entropies[0] == entropies[1]


def test_the_environment_says_what_a_process_begins_with() -> None:
    begin = "from glimprouter import kv; print(kv.set_attention_loads('direct'))"
    for named, expected in {"": "direct", "direct": "direct", "staged": "staged"}.items():
        environment = {**os.environ, "GLIMPROUTER_ATTENTION_LOADS": named}
        command = [sys.executable, "-c", begin]
        output = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout
        assert output.strip() == expected


def test_an_unknown_name_is_refused_and_changes_nothing() -> None:
    before = kv.set_attention_loads("staged")
    try:
        with pytest.raises(ValueError, match="takes one of direct, staged"):
            kv.set_attention_loads("bulk")
        assert kv.set_attention_loads(before) == "staged"
    finally:
        kv.set_attention_loads(before)
    environment = {**os.environ, "GLIMPROUTER_ATTENTION_LOADS": "bulk"}
    command = [sys.executable, "-c", "import glimprouter"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert 'unknown loads of attention "bulk"' in finished.stderr
