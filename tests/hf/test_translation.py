"""Pairs whose tokenizers differ, end to end."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import glimprouter as gr
import hf_translated
import tokenizer_kinds
from glimprouter.boundary import token_bytes
from glimprouter.hf import EncodedPrompt, Result, RoutedModel, routed_generate
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.engine.paged import PagedEngine
from glimprouter.hf.run.run import Run
from hf_pairs import ENGINE
from hf_translated import KINDS, permutation, permuted_pair, random_model
from hf_watch import Rows, watched

pytestmark = pytest.mark.both_engines


@pytest.mark.parametrize("which", ["small", "large"])
@pytest.mark.parametrize("name", ["qwen3", "trained"])
def test_permuted_ids_change_nothing(name: str, which: str) -> None:
    """Every token has an image: same text, routes and ids, nothing tokenized or computed twice."""
    pair, make, encoded = permuted_pair(name, which)
    plain = pair.routed(max_think_tokens=100)
    want = plain.generate(pair.prompts)
    got = make(plain.config).generate(encoded)
    new = permutation(pair.tokenizer)
    models = Counter(step.model for result in got for step in result.trace.steps)
    assert min(models["small"], models["large"]) >= 5, models
    for result, expected in zip(got, want, strict=True):
        ids = expected.token_ids
        assert result.token_ids == (ids if which == "small" else [new[i] for i in ids])
        steps, expected_steps = result.trace.steps, expected.trace.steps
        assert [s.model for s in steps] == [s.model for s in expected_steps]
        assert [s.num_tokens for s in steps] == [s.num_tokens for s in expected_steps]
        if name == "trained":
            assert result.text == expected.text
            assert result.answer == expected.answer
            assert [s.text for s in steps] == [s.text for s in expected_steps]
        for counts in result.counts.values():
            assert (counts.retokenized, counts.excess) == (0, 0)


@contextmanager
def final_lists(run: Run) -> Iterator[dict[int, tuple[list[int], list[int]]]]:
    """The lists of both models, as they are when a sequence ends, by sequence."""
    lists = {}
    engine: Any = run._sequences.engine
    close = engine.close

    def closing(record: Any) -> None:
        lists[record.index] = tuple(engine.token_ids(m, record) for m in ("small", "large"))
        close(record)

    engine.close = closing
    yield lists


def written(kind: str, ids: list[int]) -> bytes:
    known = token_bytes(tokenizer_kinds.tokenizer_of(kind))
    return b"".join(known[i] or b"<special>" for i in ids)


@pytest.mark.parametrize(("small", "large"), KINDS)
def test_both_read_the_same_and_the_excess_is_counted(small: str, large: str) -> None:
    """Computed once: every token of a model's list, and what re-tokenized spans replaced."""
    routed = hf_translated.routed(small, large)
    prompts = hf_translated.prompts(small, large)
    with watched(routed.small) as by_small, watched(routed.large) as by_large:
        run = routed.stream(prompts)
        with final_lists(run) as lists:
            events = list(run)
    results = {event.sequence: event.result for event in events if event.result is not None}
    totals: Counter[str] = Counter()
    for index, result in results.items():
        own = dict(zip(("small", "large"), lists[index], strict=True))
        assert result.token_ids == own["large"]
        text = b"".join(
            written({"small": small, "large": large}[str(e.model)], [e.token_id])
            for e in events
            if e.sequence == index and e.kind == "token" and e.token_id is not None
        )
        assert written(small, own["small"]) == written(large, own["large"]) == text
        pieces = [e.text or "" for e in events if e.sequence == index and e.kind == "token"]
        thought, close, answer = text.partition(b"\n</think>")  # forced, in any character
        whole = codecs.getincrementaldecoder("utf-8")(errors="replace").decode(thought)
        assert "".join(pieces) == whole + (close + answer).decode(errors="replace")
        for name, computed in (("small", by_small), ("large", by_large)):
            mine = [(position, token) for slot, position, token in computed if slot == index]
            prompt = prompts[index].small if name == "small" else prompts[index].large
            ids = [*prompt, *own[name]]
            held = dict(mine)  # what was computed last at each position
            counts = result.counts[name]
            assert [held[i] for i in range(len(held))] == ids[: len(held)]
            assert len(mine) == len(held) + counts.excess
            assert counts.excess <= counts.retokenized
            totals += Counter({f"{name} retokenized": counts.retokenized})
            totals += Counter({f"{name} excess": counts.excess, f"{name} tokens": len(mine)})
        totals.update(step.model for step in result.trace.steps)
    print(dict(totals))
    assert min(totals["small"], totals["large"]) >= 10
    assert min(totals["small retokenized"], totals["large retokenized"]) > 0
    if (small, large) != KINDS[1]:  # steps were cut within characters
        assert totals["small excess"] + totals["large excess"] > 0


@pytest.mark.parametrize(("small", "large"), KINDS)
def test_engines_agree(small: str, large: str) -> None:
    results = [
        hf_translated.routed(small, large, engine=engine).generate(
            hf_translated.prompts(small, large)
        )
        for engine in ("gather", "paged")
    ]
    for gathered, paged in zip(*results, strict=True):
        assert gathered.token_ids == paged.token_ids
        assert gathered.counts == paged.counts
        assert [s.model for s in gathered.trace.steps] == [s.model for s in paged.trace.steps]


@pytest.mark.parametrize(
    "families",
    [
        None,
        ("gemma4_text", "deepseek_v3"),
        ("qwen3_5_text", "llama4_text"),
        ("gpt_oss", "kimi_linear"),
    ],
    ids=str,
)
def test_steps_are_those_of_a_loop_without_cache(families: tuple[str, str] | None) -> None:
    """Each model is run from scratch on its own list; it must choose the token that was written."""
    small, large = KINDS[1]
    engine_of_all = {} if families is None else {"engine": "auto"}
    routed = hf_translated.routed(small, large, families=families, **engine_of_all)
    prompts = hf_translated.prompts(small, large)
    engine_calls = 0
    run = routed.stream(prompts)
    engine: Any = run._sequences.engine
    forward = engine.forward

    def checked(model: str, records: Any) -> torch.Tensor:
        nonlocal engine_calls
        logits = forward(model, records)
        for row, record in zip(logits, records, strict=True):
            ids = [*record.prompt_of(model), *engine.token_ids(model, record)]
            with torch.inference_mode():
                plain = {"small": routed.small, "large": routed.large}[model](torch.tensor([ids]))
            torch.testing.assert_close(row, plain.logits[0, -1], atol=2e-3, rtol=1e-3)
            engine_calls += 1
        return logits

    engine.forward = checked
    for _ in run:
        pass
    assert engine_calls > 200


def with_sectors(small: str, large: str, sectors: int) -> RoutedModel:
    """The pair on an arena of so many sectors."""
    layouts = [kv_layout(random_model(small, 2, 5)), kv_layout(random_model(large, 3, 6))]
    memory = sectors * gr.PagePool.default_sector_bytes(layouts)
    return hf_translated.routed(small, large, engine="paged", kv_memory_bytes=memory)


@pytest.mark.usefixtures("pages_of_16")
def test_preempted_sequences_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = KINDS[0]
    prompts = hf_translated.prompts(small, large) * 2
    want = hf_translated.routed(small, large, engine="paged").generate(prompts)
    preempted: list[int] = []
    original = PagedEngine.preempt

    def counted(self: PagedEngine, record: Any) -> None:
        preempted.append(record.index)
        original(self, record)

    monkeypatch.setattr(PagedEngine, "preempt", counted)
    for sectors in (9, 12, 16):
        got = with_sectors(small, large, sectors).generate(prompts)
        assert [r.token_ids for r in got] == [r.token_ids for r in want]
        assert [r.counts for r in got] == [r.counts for r in want]
    assert preempted


@pytest.mark.usefixtures("pages_of_16")
def test_text_that_outgrows_the_arena_ends_its_sequence() -> None:
    """It holds what was planned, one token a token, and no more."""
    small, large = KINDS[0]
    prompts = hf_translated.prompts(small, large)
    want = hf_translated.routed(small, large, engine="paged").generate(prompts)
    got = with_sectors(small, large, 8).generate(prompts)
    ended = [result.trace.error is not None for result in got]
    assert any(ended)
    assert not all(ended)
    for result, expected in zip(got, want, strict=True):
        if result.trace.error is None:
            assert result.token_ids == expected.token_ids
        else:
            assert "out of pages" in result.trace.error
            assert result.token_ids == expected.token_ids[: len(result.token_ids)]


@contextmanager
def forced_token(model: Any, slot: int, length: int, token: int) -> Iterator[None]:
    """One sequence gets this token once it has so many."""

    def force(_module: Any, _args: Any, arguments: dict[str, Any], output: Any) -> Any:
        rows = Rows.of(arguments)
        packed = "glimprouter_pass" in arguments
        for row in range(len(rows.slots)):
            if rows.slots[row] == slot and rows.starts[row] + rows.counts[row] >= length:
                (output.logits[0, row] if packed else output.logits[row])[..., token] = 1e4
        return output

    handle = model.register_forward_hook(force, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_a_token_without_counterpart_ends_its_sequence_alone() -> None:
    small, large = KINDS[0]
    want = hf_translated.routed(small, large).generate(hf_translated.prompts(small, large))
    tokenizer = tokenizer_kinds.BUILDERS[small]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|odd|>"]})
    odd = tokenizer.convert_tokens_to_ids("<|odd|>")
    plain = hf_translated.routed(small, large)
    routed = RoutedModel(
        plain.small,
        plain.large,
        tokenizer,
        plain.config,
        large_tokenizer=plain.large_tokenizer,
        engine=ENGINE.get(),
    )
    prompts = hf_translated.prompts(small, large)
    with forced_token(routed.small, 2, len(prompts[2].small) + 12, odd):
        events = list(routed.stream(prompts))
    errors = [event for event in events if event.kind == "error"]
    assert [event.sequence for event in errors] == [2]
    assert f"wrote token {odd}, which has neither text nor a counterpart" in str(errors[0].message)
    results = {event.sequence: event.result for event in events if event.result is not None}
    assert results[2].trace.end_reason == "error"
    assert results[2].token_ids == want[2].token_ids[: len(results[2].token_ids)]
    for index in (0, 1, 3, 4):
        assert results[index].token_ids == want[index].token_ids


def test_text_that_outgrows_a_context_ends_its_sequence() -> None:
    """What the context leaves of one model's tokens is more of the other's, which are shorter."""
    routed = hf_translated.routed(
        "gpt2", "llama2", context=110, route="small", max_think_tokens=None
    )
    results = routed.generate(hf_translated.prompts("gpt2", "llama2"))
    ended = [result for result in results if result.trace.error is not None]
    assert ended
    for result in ended:
        assert "tokens of the large model, whose context is 110" in str(result.trace.error)
        assert result.trace.end_reason == "error"
        assert written("llama2", result.token_ids)  # all of it, also what does not fit
    assert all(r.answer for r in results if r.trace.error is None)


def test_a_text_may_fill_a_context_to_its_last_token() -> None:
    """The large model sees all that it can and writes one token more; one too many is an error."""
    small, large = KINDS[1]
    prompts = hf_translated.prompts(small, large)

    def results(context: int) -> list[Result]:
        routed = hf_translated.routed(small, large, context=context, route="small")
        with watched(routed.large) as seen:
            got = routed.generate(prompts)
        assert max(position for _, position, _ in seen) < context
        return got

    want = results(2048)
    # Nobody sees the last id.
    lengths = [len(p.large) + len(r.token_ids) - 1 for p, r in zip(prompts, want, strict=True)]
    longest = max(lengths)
    full = results(longest)
    assert [result.trace.error for result in full] == [None] * len(prompts)
    assert [result.token_ids for result in full] == [result.token_ids for result in want]
    message = f"are {longest} tokens of the large model, whose context is {longest - 1}"
    for length, result, expected in zip(lengths, results(longest - 1), want, strict=True):
        if length < longest:
            assert (result.trace.error, result.token_ids) == (None, expected.token_ids)
        else:
            assert message in str(result.trace.error)
            assert result.trace.end_reason == "error"
            assert result.token_ids == expected.token_ids[:-1]


def test_forced_close_is_read_by_both() -> None:
    small, large = KINDS[1]
    results = hf_translated.routed(small, large, max_think_tokens=9).generate(
        hf_translated.prompts(small, large)
    )
    end = tokenizer_kinds.tokenizer_of(large).convert_tokens_to_ids("</think>")
    for result in results:
        assert result.trace.steps[-1].end_reason == "budget"
        assert result.token_ids.count(end) == 1
        assert written(large, result.token_ids).count(b"\n</think>\n\n") == 1
        assert result.trace.answer_tokens == 8


def test_behind_generate() -> None:
    """Ids go in and come out in the large model's vocabulary."""
    small, large = KINDS[0]
    routed = hf_translated.routed(small, large, max_think_tokens=40, max_answer_tokens=8)
    prompt = hf_translated.prompts(small, large)[2]
    room = 40 + 8 + len(routed.boundary.close_ids)
    with torch.inference_mode():
        output = routed.large.generate(
            torch.tensor([prompt.large]),
            custom_generate=routed_generate,
            small=routed.small,
            small_tokenizer=routed.tokenizer,
            large_tokenizer=routed.large_tokenizer,
            router_config=routed.config,
            engine=ENGINE.get(),
            max_new_tokens=room,
            do_sample=False,
        )
    converted = routed.translation.convert(prompt.large, source=1)
    encoded = EncodedPrompt(None, small=converted, large=prompt.large)
    [want] = routed.generate([encoded])
    assert output[0].tolist() == prompt.large + want.token_ids
    assert written(small, converted) == written(large, prompt.large)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("unigram", r"cannot be mapped: the tokens of the large model's tokenizer do not write"),
        (
            "no end",
            r"small model's tokenizer has markers of thinking .think., the large model's has none",
        ),
    ],
)
def test_pairs_that_cannot_be_mapped(tokenizer: str, message: str) -> None:
    if tokenizer == "no end":
        backend = tokenizer_kinds.tokenizer_of("qwen").backend_tokenizer.to_str()
        other = hf_translated.from_text(backend.replace("</think>", "</thonk>"))
    else:
        other = tokenizer_kinds.tokenizer_of(tokenizer)
    with pytest.raises(ValueError, match=message):
        RoutedModel(
            random_model("gpt2", 2, 5),
            random_model("qwen", 3, 6),
            tokenizer_kinds.tokenizer_of("gpt2"),
            large_tokenizer=other,
        )


def test_ids_must_say_whose_they_are() -> None:
    small, large = KINDS[0]
    routed = hf_translated.routed(small, large)
    with pytest.raises(ValueError, match="raw ids must be given for each model"):
        routed.generate([[1, 2, 3]])
    with pytest.raises(ValueError, match="lies outside the vocabulary"):
        routed.generate([EncodedPrompt(None, small=[1], large=[10**6])])
    with pytest.raises(ValueError, match=r"eos_token_ids must say whose"):
        RoutedModel(
            routed.small,
            routed.large,
            routed.tokenizer,
            large_tokenizer=routed.large_tokenizer,
            eos_token_ids=[1],
        )
    small_end, *large_ends = (
        tokenizer.convert_tokens_to_ids(name)
        for tokenizer, name in (
            (routed.tokenizer, "<|endoftext|>"),
            (routed.large_tokenizer, "<|endoftext|>"),
            (routed.large_tokenizer, "<|im_start|>"),
        )
    )
    chosen = RoutedModel(
        routed.small,
        routed.large,
        routed.tokenizer,
        large_tokenizer=routed.large_tokenizer,
        eos_token_ids={"small": [small_end], "large": large_ends},
    )
    assert chosen.boundary.eos_ids == [small_end]
    assert chosen.large_boundary.eos_ids == large_ends
