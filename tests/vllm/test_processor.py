"""The class that vLLM loads, driven by hand: both interfaces, batches that change, bad requests."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from glimprouter import demo_pair
from glimprouter.vllm.protocol import ARGUMENT, BoundarySpec, GateOptions, Written, meaning_of
from hf_pairs import trained_pair

vllm = pytest.importorskip("vllm", reason="vLLM is not installed: its interfaces were not tried")

TOKENIZER = trained_pair().tokenizer
VOCABULARY = len(TOKENIZER)
SPEC = BoundarySpec("<think>", "</think>", None, (TOKENIZER.eos_token_id,))
HANDOFF = 7
OPTIONS = GateOptions(SPEC, HANDOFF, decides=True, threshold=3.0)


def config(**changes: Any) -> Any:
    model = {
        "tokenizer": str(demo_pair.small_path()),
        "tokenizer_revision": None,
        "trust_remote_code": False,
        "logprobs_mode": "processed_logits",
    }
    own = {"speculative_config": None, **changes}
    model["logprobs_mode"] = own.pop("logprobs_mode", "processed_logits")
    return SimpleNamespace(model_config=SimpleNamespace(**model), **own)


def params(options: GateOptions | None, **changes: Any) -> Any:
    own = {"temperature": 0.0, "logprobs": 0, "stop_token_ids": [HANDOFF], **changes}
    if options is not None:
        own["extra_args"] = {ARGUMENT: options.to_json()}
    return vllm.SamplingParams(**own)


def gate_of_batches() -> Any:
    from glimprouter.vllm import GlimpGate

    return GlimpGate(config(), torch.device("cpu"), False)


def update(**changes: Any) -> Any:
    return SimpleNamespace(**{"removed": [], "added": [], "moved": [], **changes})


def rows(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3.0 * torch.randn(count, VOCABULARY, generator=generator)


def left_of(logits: torch.Tensor) -> Written | None:
    """What a gate says of a row; None where it left the row alone."""
    if not torch.isneginf(logits).any():
        return None
    token = int(logits.argmax())
    return meaning_of(token, float(logits[token]), HANDOFF)


def alone(logits: torch.Tensor, options: GateOptions, written: list[int]) -> Written | None:
    gate = gate_of_batches()
    gate.update_state(update(added=[(0, params(options), [1], written)]))
    return left_of(gate.apply(logits[None].clone())[0])


def test_a_batch_that_changes() -> None:
    """Requests come, go, move and change places; those without the argument are left alone."""
    from vllm.v1.sample.logits_processor import MoveDirectionality

    gate = gate_of_batches()
    assert not gate.is_argmax_invariant()
    logits = rows(4)
    assert torch.equal(gate.apply(logits.clone()), logits)
    first, second = OPTIONS, dataclasses.replace(OPTIONS, threshold=0.0)
    third = dataclasses.replace(OPTIONS, one_step=True, begun=True, temperature=1.0, seed=3)
    texts: list[list[int]] = [[], [20, 21], [30], []]
    wanted = [params(first), params(None), params(third), params(second)]
    gate.update_state(update(added=[(i, own, [1], texts[i]) for i, own in enumerate(wanted)]))
    known = {0: first, 2: third, 3: second}

    def check(places: dict[int, int | None], seed: int) -> None:
        """Which request is in which row, none for one without a gate."""
        own = rows(len(places), seed)
        got = gate.apply(own.clone())
        for place, request in places.items():
            want = None if request is None else alone(own[place], known[request], texts[request])
            assert left_of(got[place]) == want

    check({0: 0, 1: None, 2: 2, 3: 3}, 1)
    texts[0].append(40)  # lists are those of the engine, which fills them
    texts[2].append(41)
    gate.update_state(None)
    check({0: 0, 1: None, 2: 2, 3: 3}, 2)
    gate.update_state(update(moved=[(0, 1, MoveDirectionality.SWAP)]))
    check({0: None, 1: 0, 2: 2, 3: 3}, 3)
    gate.update_state(update(removed=[0, 2], moved=[(3, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    check({0: 3, 1: 0}, 4)
    gate.update_state(update(added=[(0, params(None), [1], [])]))
    check({0: None, 1: 0}, 5)


class Slots:
    """The second interface's view of its requests."""

    def __init__(self, slots: int) -> None:
        self.prompt_len = SimpleNamespace(np=np.zeros(slots, np.int32))
        self.prefill_len = SimpleNamespace(np=np.zeros(slots, np.int32))
        self.all_token_ids = SimpleNamespace(gpu=torch.zeros(slots, 64, dtype=torch.int32))


def context(slots: list[int], lengths: list[int]) -> Any:
    return SimpleNamespace(
        idx_mapping_np=np.array(slots), seq_lens_upper_bound_np=np.array(lengths)
    )


def test_the_second_interface() -> None:
    """Rows by slot; half-read prompts write nothing; the gate knows what it left."""
    from glimprouter.vllm import GlimpGate

    state = Slots(8)
    gate = GlimpGate(config(), state)
    easy = dataclasses.replace(OPTIONS, threshold=float("inf"))
    assert gate.add_request(5, params(easy))
    assert not gate.add_request(2, params(None))
    assert gate.add_request(6, params(easy))
    for slot, prompt in ((5, 10), (2, 4), (6, 20)):
        state.prompt_len.np[slot] = state.prefill_len.np[slot] = prompt
    written: list[int] = []
    for step in range(12):
        logits = rows(3, 10 + step)
        ctx = context([2, 5, 6], [4 + step, 10 + step, 15])
        got = gate.apply(logits.clone(), ctx)
        assert torch.equal(got[0], logits[0])
        assert torch.equal(got[2], logits[2])  # 15 of 20 tokens of its prompt are read
        said = left_of(got[1])
        assert said == alone(logits[1], easy, written)
        assert said is not None
        if said.token is None or said.ended:
            break
        written.append(said.token)
    assert len(written) >= 3
    # Preempted, and begun again in another slot: its ids are read back, once.
    assert gate.add_request(1, params(easy))
    state.prompt_len.np[1], state.prefill_len.np[1] = 10, 10 + len(written)
    state.all_token_ids.gpu[1, 10 : 10 + len(written)] = torch.tensor(written)
    logits = rows(1, 99)
    got = gate.apply(logits.clone(), context([1], [10 + len(written)]))
    assert left_of(got[0]) == alone(logits[0], easy, written)


def test_the_class_has_both_interfaces() -> None:
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as Second

    from glimprouter.vllm import GlimpGate

    assert issubclass(GlimpGate, LogitsProcessor)
    assert issubclass(GlimpGate, Second)
    for interface in (LogitsProcessor, Second):
        assert not getattr(GlimpGate, "__abstractmethods__", None), interface


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speculative_config": object()}, "speculative"),
        ({"logprobs_mode": "raw_logprobs"}, "--logprobs-mode processed_logits"),
    ],
)
def test_engines_that_cannot_have_a_gate(changes: Any, message: str) -> None:
    from glimprouter.vllm import GlimpGate

    with pytest.raises(ValueError, match=message):
        GlimpGate(config(**changes), torch.device("cpu"), False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {3: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": [3]}, "allowed_token_ids"),
        ({"min_tokens": 2, "max_tokens": 5}, "min_tokens"),
        ({"stop_token_ids": [3]}, "stop_token_ids"),
        ({"logprobs": None}, "logprobs"),
    ],
    ids=str,
)
def test_requests_that_would_change_logits_behind_the_gate(changes: Any, message: str) -> None:
    from glimprouter.vllm import GlimpGate

    GlimpGate.validate_params(params(OPTIONS))
    GlimpGate.validate_params(vllm.SamplingParams(temperature=0.7))
    with pytest.raises(ValueError, match=message):
        GlimpGate.validate_params(params(OPTIONS, **changes))


def test_a_speculative_engine_is_refused_before_it_starts() -> None:
    from glimprouter.vllm import gated_engine

    with pytest.raises(ValueError, match="speculative"):
        gated_engine("model", speculative_config={"method": "ngram"})
    with pytest.raises(ValueError, match="logprobs_mode"):
        gated_engine("model", logprobs_mode="raw_logits")
