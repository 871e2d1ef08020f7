"""What only caches of the models' own have: states that cannot be cut, snapshots, one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_pairs
from glimprouter.hf import RoutedModel
from glimprouter.hf.engine.native_cache import NativeCache
from glimprouter.hf.engine.native_state import copy_state, load_state, save_state
from hf_runs import begun, finish, finish_with_failures, routed, written

pytestmark = pytest.mark.both_engines("native")

# Recurrent layers; windows, which forget; keys and values of all tokens, which can be cut.
NAMES = ("hybrid", "gemma3", "qwen3")


def test_what_is_computed_again_is_counted() -> None:
    """Back to a place of which no snapshot is kept; where keys and values are all, nothing is."""
    recomputed = {}
    for name in ("hybrid", "qwen3"):
        model, prompts = routed(name)
        want = model.generate(prompts[:1])[0]
        assert all(count.recomputed == 0 for count in want.counts.values())
        run = begun(model, prompts[:1], 40)
        run.rewind(0, len(run.generated(0)) - 1)
        result = finish(run)[0]
        assert written(result) == written(want)
        recomputed[name] = sum(count.recomputed for count in result.counts.values())
    assert recomputed["hybrid"] > 0
    assert recomputed["qwen3"] == 0


@pytest.mark.parametrize("snapshots", [0, 1, 8])
def test_any_number_of_snapshots(snapshots: int) -> None:
    """Fewer cost time, not tokens."""
    pair = hf_pairs.random_pair("hybrid")
    model = RoutedModel(
        pair.small,
        pair.large,
        pair.tokenizer,
        pair.routed(max_think_tokens=50).config,
        engine="native",
        state_snapshots=snapshots,
    )
    want = model.generate(pair.prompts[:1])[0]
    run = begun(model, pair.prompts[:1], 30)
    run.rewind(0, 9)
    assert written(finish(run)[0]) == written(want)


@pytest.mark.parametrize("name", ["hybrid", "qwen3"])
def test_a_pass_that_fails_on_the_way_spoils_nothing(name: str) -> None:
    """Half of the layers have seen the tokens: the state is given up, and computed again."""
    model, prompts = routed(name)
    want = [written(result) for result in model.generate(prompts[:2])]
    results = finish_with_failures(model, prompts[:2], model.large.model.layers[2])
    assert [written(results[index]) for index in (0, 1)] == want


def test_one_sequence_after_another() -> None:
    """A cache holds one; nobody is made to wait for ever."""
    model, prompts = routed("hybrid")
    seen: list[int] = []

    def note(_module: Any, _args: Any, arguments: dict[str, Any]) -> None:
        seen.append(arguments["input_ids"].shape[0])

    handle = model.small.register_forward_pre_hook(note, with_kwargs=True)
    try:
        results = model.generate(prompts)
    finally:
        handle.remove()
    assert set(seen) == {1}
    assert len(results) == len(prompts)


def test_a_saved_state_of_another_kind_is_refused() -> None:
    """By its classes; and one engine's sequence by the other."""
    hybrid, prompts = routed("hybrid")
    saved = begun(hybrid, prompts[:1], 5).save(0)
    with pytest.raises(ValueError, match="saved by another pair"):
        routed("qwen3")[0].resume([saved])
    states = {}
    for name in ("hybrid", "qwen3"):
        model = hf_pairs.pair_of(name).small
        with torch.inference_mode():
            states[name] = model(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
    text, tensors = save_state(states["hybrid"])
    with pytest.raises(ValueError, match="another model, or of another version of transformers"):
        load_state(states["qwen3"], text, tensors)


@pytest.mark.parametrize("name", NAMES)
def test_copies_share_nothing_that_is_written_into(name: str) -> None:
    """The original goes on; the copy is as it was, and so is what was read back from bytes."""
    model = hf_pairs.pair_of(name).small
    ids = torch.tensor([list(range(40, 60))])
    with torch.inference_mode():
        state = model(ids[:, :12], use_cache=True).past_key_values
        want = model(ids[:, :13], use_cache=False).logits[0, -1]
        copy = copy_state(state, (model.config,))
        text, tensors = save_state(state)
        fresh = model(ids[:, 5:6], use_cache=True).past_key_values
        loaded = load_state(fresh, text, tensors)
        model(ids[:, 12:], past_key_values=state, use_cache=True)
        for other in (copy, loaded):
            got = model(ids[:, 12:13], past_key_values=other, use_cache=True).logits[0, -1]
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_slots_against_a_model_of_lists() -> None:
    """Any order of passes, cuts and copies: what a state has seen is what was given to it."""

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 90))))
    def check(steps: list[tuple[int, int, int]]) -> None:
        # A state that cannot be cut: the tuple of all tokens that went in.
        cache = NativeCache(3, 2, tuple, lambda: (0,), ())
        texts: list[list[int]] = [[], [], []]
        for number, (slot, action, amount) in enumerate(steps):
            text = texts[slot]
            if action == 3:
                other = (slot + 1) % 3
                cache.free(other)
                cache.copy(slot, other)
                texts[other] = list(text)
            elif action == 2:
                kept = max(0, len(text) - amount)
                dropped = max(0, cache.lengths[slot] - kept)
                assert cache.truncate(slot, kept) == dropped
                del text[kept:]
            else:
                text += [number * 100 + index for index in range(amount if action else 1)]
            catch_up(cache, slot, text)
        for slot, text in enumerate(texts):
            assert cache.lengths[slot] == len(text)

    def catch_up(cache: NativeCache, slot: int, text: list[int]) -> None:
        start = cache.lengths[slot]
        if start == len(text):
            return
        pieces = cache.pieces(slot, len(text) - start)
        assert sum(pieces) == len(text) - start
        for piece in pieces:
            state = cache.state(slot)
            assert list(state) == text[:start]
            cache.advance(slot, (*state, *text[start : start + piece]), piece)
            start += piece

    check()
