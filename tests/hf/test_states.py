"""Models that keep states beside pages: batches, snapshots, memory, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen3_5ForCausalLM

import family_checks
import hf_pairs
from families import build, config_of
from glimprouter.hf import PagedCache, RoutedModel
from glimprouter.hf.attention.trial import why_not_paged
from glimprouter.hf.state.form import find_state_form
from glimprouter.hf.state.slots import StateSlots
from hf_runs import begun, finish, finish_with_failures, routed, written

pytestmark = pytest.mark.both_engines("paged")


def pair_with(snapshots: int, **options: Any) -> tuple[RoutedModel, list[Any]]:
    """A greedy pair, each model with attention in every other layer."""
    pair = hf_pairs.random_pair("hybrid")
    config = pair.routed(max_think_tokens=50).config
    kept = {"engine": "paged", "state_snapshots": snapshots, **options}
    return RoutedModel(pair.small, pair.large, pair.tokenizer, config, **kept), pair.prompts


def pair_of_large_states(**options: Any) -> tuple[RoutedModel, list[Any]]:
    """States of a sequence that take more than its pages."""
    shape = {"linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
    small, large = (build("qwen3_5_text", seed=seed, **shape) for seed in (1, 2))
    config = hf_pairs.random_pair("hybrid").routed(max_think_tokens=40, threshold=5.0).config
    kept = {"engine": "paged", "thinking": None, "eos_token_ids": [], **options}
    return RoutedModel(small, large, hf_pairs.TOKENIZER, config, **kept), family_checks.PROMPTS


def states_of(run: Any) -> Any:
    """The states of both models."""
    return run._sequences.engine._states


def test_decoding_rows_go_together() -> None:
    """And rows that are as far behind as one another; each row is as it is alone."""
    model, prompts = pair_with(2)
    alone = [written(model.generate([prompt], route="small")[0]) for prompt in prompts]
    shapes: list[tuple[int, int]] = []

    def note(_module: Any, _args: Any, arguments: dict[str, Any]) -> None:
        shapes.append(tuple(arguments["input_ids"].shape))

    handle = model.small.register_forward_pre_hook(note, with_kwargs=True)
    try:
        together = model.generate(prompts, route="small")
    finally:
        handle.remove()
    assert [written(result) for result in together] == alone
    rows = [batch for batch, length in shapes if length == 1]
    assert max(rows) == len(prompts)
    assert sum(rows) > 2 * len(rows)


@pytest.mark.parametrize("snapshots", [0, 1, 2, 5])
def test_back_to_the_start_of_a_step_costs_nothing_where_a_snapshot_is(snapshots: int) -> None:
    """The last pass is repeated, as on pages always; further back, what lies between is, too."""
    model, prompts = pair_with(snapshots)
    want = model.generate(prompts[:1])[0]
    assert all(count.recomputed == 0 for count in want.counts.values())
    run = model.stream(prompts[:1])
    steps = 0
    while steps < 6:
        steps += sum(event.kind == "step" for event in run.step())
    lengths = [step.num_tokens for step in run.trace(0).steps]
    behind = len(run.generated(0)) - sum(lengths)
    run.rewind(0, behind + sum(lengths[-2:]))
    result = finish(run)[0]
    assert written(result) == written(want)
    again = sum(count.recomputed for count in result.counts.values())
    assert (again == 0) == (snapshots >= 2), again


def test_a_pass_that_fails_on_the_way_spoils_nothing() -> None:
    """Half of the layers have seen the tokens: the states are as before, nothing is recomputed."""
    model, prompts = pair_with(2)
    want = [written(result) for result in model.generate(prompts[:2])]
    results = finish_with_failures(model, prompts[:2], model.large.model.layers[2])
    assert [written(results[index]) for index in (0, 1)] == want
    assert all(c.recomputed == 0 for r in results.values() for c in r.counts.values())


def test_broken_off_while_states_are_written_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written over is lost, and computed again: never taken for what it was."""
    model, prompts = pair_with(2)
    want = [written(result) for result in model.generate(prompts[:2])]
    run = model.stream(prompts[:2])
    whole = StateSlots.write

    def broken(slots: StateSlots, rows: Any, states: Any) -> None:
        whole(slots, rows, states)
        raise KeyboardInterrupt

    for passes in (3, 11, 19):
        for _ in range(passes):
            run.step()
        with monkeypatch.context() as patch:
            patch.setattr(StateSlots, "write", broken)
            with pytest.raises(KeyboardInterrupt):
                list(run)
    results = finish(run)
    assert [written(results[index]) for index in (0, 1)] == want
    assert sum(c.recomputed for r in results.values() for c in r.counts.values()) > 0


def test_memory_for_few_states_makes_sequences_wait() -> None:
    """Snapshots give theirs up first, then sequences wait; what cannot be had is refused."""
    model, prompts = pair_of_large_states()
    want = [written(result) for result in model.generate(prompts)]
    run = model.stream(prompts)
    each = sum(states.slots.form.num_bytes for states in states_of(run).values())
    assert states_of(run)["small"].slots.num_slots == model.max_sequences * 3
    scarce, _ = pair_of_large_states(kv_memory_bytes=2 * 3 * each + 1)
    run = scarce.stream(prompts)
    slots = states_of(run)["small"].slots.num_slots
    assert slots == 2 < len(prompts)
    results: dict[int, Any] = {}
    refused = ""
    while len(results) < len(prompts):
        for event in run.step():
            if event.result is not None:
                results[event.sequence] = event.result
        flying = [index for index in run.sequences if run.generated(index)]
        if len(flying) == slots and not refused:
            before = [run.generated(index) for index in flying]
            with pytest.raises(RuntimeError, match="no memory for the state of one sequence more"):
                run.fork(flying[0])
            refused = "once"
            assert [run.generated(index) for index in flying] == before
    assert refused
    assert [written(results[index]) for index in range(len(prompts))] == want
    with pytest.raises(
        ValueError, match=r"states of one sequence, and of pad.* \d+ bytes.*raise kv_memory"
    ):
        pair_of_large_states(kv_memory_bytes=each)[0].generate(prompts)


def test_all_memory_is_given_back() -> None:
    model, prompts = pair_with(3)
    run = begun(model, prompts, 9)
    run.fork(0)
    run.rewind(1, 1)
    engine, states = run._sequences.engine, states_of(run)
    finish(run)
    assert [each.slots.num_free for each in states.values()] == [
        each.slots.num_slots for each in states.values()
    ]
    assert not engine._saved


class KeepsMeanInItself(Qwen3_5ForCausalLM):
    """A state beside the cache, as if one sequence were all there is."""

    def forward(self, input_ids: Any = None, use_cache: bool = False, **options: Any) -> Any:
        output = super().forward(input_ids, use_cache=use_cache, **options)
        mean = output.logits.mean() + (getattr(self, "mean", 0.0) if use_cache else 0.0)
        if use_cache:
            self.mean = mean
        output.logits = output.logits + 0.1 * mean * torch.arange(output.logits.shape[-1])
        return output


class SeesTheRows(Qwen3_5ForCausalLM):
    """The mean over the rows of a pass goes into the logits."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        output.logits = output.logits + 0.5 * output.logits.mean(dim=0, keepdim=True).roll(1, -1)
        return output


@pytest.mark.parametrize("kind", [KeepsMeanInItself, SeesTheRows])
def test_what_is_wrong_is_seen(kind: Any) -> None:
    torch.manual_seed(1)
    model = kind(config_of("qwen3_5_text")).eval()
    assert "differ by" in str(why_not_paged(model))
    assert why_not_paged(build("qwen3_5_text")) is None


def test_what_a_state_is() -> None:
    """Of the family's own shapes; none of a model with keys and values only."""
    form = find_state_form(build("qwen3_5_text"))
    assert form is not None
    assert form.attending == (3,)
    assert {tensor.layer for tensor in form.tensors} == {0, 1, 2}
    convolution, delta = form.tensors[:2]
    assert (convolution.shape, delta.shape) == ((128, 4), (4, 16, 16))
    assert find_state_form(build("qwen3")) is None
    with pytest.raises(ValueError, match="keeps what pages do not hold: DynamicIndexedLayer"):
        find_state_form(build("qwen4_exp_text"))


def test_what_cannot_be_had_is_refused() -> None:
    pair = hf_pairs.random_pair("hybrid")
    with pytest.raises(ValueError, match=r"compiled.*large and the small model keeps states"):
        RoutedModel(pair.small, pair.large, pair.tokenizer, execution="compiled")
    paged = build("bamba")
    paged.set_attn_implementation("glimprouter")
    with pytest.raises(ValueError, match="layers of type 'linear_attention'"):
        PagedCache(paged)


def test_a_saved_state_of_another_form_is_refused() -> None:
    """The other sequences go on."""
    model, prompts = routed("hybrid")
    run = begun(model, prompts[:1], 5)
    engine, record = run._sequences.engine, run._sequences.begun(0)
    memory = engine.save(record)
    for name in [name for name in memory if name.startswith("state.")]:
        wrong = {**memory, name: memory[name][:, :1].clone() if memory[name].ndim > 1 else None}
        if memory[name].ndim == 1:
            del wrong[name]
        with pytest.raises(ValueError, match="not one of this model"):
            engine.restore(record, wrong)
    finish(run)
