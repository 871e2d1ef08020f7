"""Attention over pages under unmodified `generate()`: the tokens of plain generate."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import glimprouter as gr
import hf_pairs
from glimprouter.hf import PagedCache, RoutedModel
from glimprouter.hf.attention.layers import kv_layout

pytestmark = pytest.mark.usefixtures("pages_of_16")
FAMILIES = (*hf_pairs.FAMILIES, "gemma2")
NEW = 40
MARGIN = 1e-4  # of the two largest logits: below it, rounding may choose


EAGER: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gemma2": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
    ),
    "gpt_oss": (GptOssConfig, GptOssForCausalLM, {"num_local_experts": 4}),
}


def plain_model(family: str) -> Any:
    """A model that no other test sees; softcaps and attention sinks with eager attention."""
    if family not in EAGER:
        return copy.deepcopy(hf_pairs.random_model(family, 3, 7))
    torch.manual_seed(7)
    config_class, model_class, own = EAGER[family]
    config = config_class(
        vocab_size=hf_pairs.VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=hf_pairs.WINDOW,
        initializer_range=0.2,
        attn_implementation="eager",
        **{f"{name}_token_id": None for name in ("bos", "eos", "pad")},
        **own,
    )
    model: Any = model_class(config).eval()
    model.generation_config.eos_token_id = None
    return model


def both(family: str) -> tuple[Any, Any]:
    """A model with its own attention, and the same over pages."""
    plain = plain_model(family)
    paged = copy.deepcopy(plain)
    paged.set_attn_implementation("glimprouter")
    return plain, paged


@pytest.fixture(params=FAMILIES)
def models(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return both(request.param)


def batch(lengths: tuple[int, ...] = (20, 3, 11)) -> dict[str, torch.Tensor]:
    """Prompts padded on the left."""
    rows = hf_pairs.raw_prompts(lengths)
    width = max(lengths)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def write(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    result: torch.Tensor = model.generate(**inputs, **options)
    return result


def assert_same(plain: Any, inputs: Any, want: torch.Tensor, got: torch.Tensor) -> None:
    """Equal, row by row, up to a token where the plain model itself was undecided."""
    assert got.shape == want.shape
    for row, (left, right) in enumerate(zip(want.tolist(), got.tolist(), strict=True)):
        if left == right:
            continue
        place = next(
            i for i, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1]
        )
        real = int(inputs["attention_mask"][row].sum())
        start = inputs["input_ids"].shape[1] - real
        logits = plain(torch.tensor([left[start:place]])).logits[0, -1]
        first, second = logits.topk(2).values.tolist()
        assert first - second < MARGIN, f"row {row} differs at token {place}"
        print(f"row {row}: undecided at token {place}")


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(20, 3, 11), (1,), (17,), (5, 5)])
def test_tokens_of_plain_generate(models: tuple[Any, Any], lengths: tuple[int, ...]) -> None:
    plain, paged = models
    inputs = batch(lengths)
    cache = PagedCache(paged)
    want = write(plain, inputs)
    assert_same(plain, inputs, want, write(paged, inputs, past_key_values=cache))
    assert cache.get_seq_length() == want.shape[1] - 1


def test_attention_sinks_are_served() -> None:
    test_tokens_of_plain_generate(both("gpt_oss"), (20, 3, 11))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"prefill_chunk_size": 4}, {"do_sample": True, "num_return_sequences": 2}],
    ids=lambda options: next(iter(options)),
)
def test_options_of_generate(models: tuple[Any, Any], options: dict[str, Any]) -> None:
    """Beams (whose rows are reordered), a prefill in chunks, and sampling."""
    plain, paged = models
    results = []
    for model, more in ((plain, {}), (paged, {"past_key_values": PagedCache(paged)})):
        torch.manual_seed(5)
        results.append(write(model, batch(), **options, **more))
    assert torch.equal(*results)


@torch.no_grad()
@pytest.mark.parametrize("lookup", [2, 5])
def test_assisted_generation_crops(models: tuple[Any, Any], lookup: int) -> None:
    """Candidates from the prompt, and from an assistant, most of which are rejected."""
    plain, paged = models
    inputs = batch((30,))
    inputs["input_ids"][0, 15:] = inputs["input_ids"][0, :15]
    want = write(plain, inputs)
    cropped: list[int] = []

    class Watched(PagedCache):
        def crop(self, tokens_to_remove: int) -> None:
            cropped.append(tokens_to_remove)
            super().crop(tokens_to_remove)

    for option in (
        {"prompt_lookup_num_tokens": lookup},
        {"assistant_model": hf_pairs.random_model("llama", 3, 9)},
    ):
        if "assistant_model" in option and plain.config.vocab_size != hf_pairs.VOCABULARY + 5:
            continue
        got = write(paged, inputs, past_key_values=Watched(paged), **option)
        assert_same(plain, inputs, want, got)
    assert min(cropped) < 0


@torch.no_grad()
def test_a_continued_chat_computes_what_is_new(models: tuple[Any, Any]) -> None:
    plain, paged = models
    cache = PagedCache(paged)
    inputs = batch((9,))
    first = write(paged, inputs, past_key_values=cache)
    longer = torch.cat([first, torch.tensor([[50, 51, 52]])], dim=1)
    inputs = {"input_ids": longer, "attention_mask": torch.ones_like(longer)}
    seen: list[int] = []
    handle = paged.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    got = write(paged, inputs, past_key_values=cache)
    handle.remove()
    assert_same(plain, inputs, write(plain, inputs), got)
    assert seen == [4] + [1] * (NEW - 1)  # the last token of the first call was never computed


@torch.no_grad()
def test_reset_frees_pages_and_serves_another_batch() -> None:
    plain, paged = plain_model("qwen3"), plain_model("qwen3")
    paged.set_attn_implementation("glimprouter")
    cache = PagedCache(paged)
    write(paged, batch(), past_key_values=cache)
    with pytest.raises(ValueError, match=r"holds 3 rows, and 2 came; reset\(\)"):
        paged(torch.tensor([[1], [2]]), past_key_values=cache)
    pool = cache._rows._pool
    assert pool is not None
    assert pool.owned(0) > 0
    cache.reset()
    assert pool.owned(0) == 0
    assert cache.get_seq_length() == 0
    inputs = batch((4, 9))
    assert_same(plain, inputs, write(plain, inputs), write(paged, inputs, past_key_values=cache))


@torch.no_grad()
def test_memory_goes_with_the_cache() -> None:
    """Without waiting for a collection of cycles."""
    paged = plain_model("llama")
    paged.set_attn_implementation("glimprouter")
    cache = PagedCache(paged)
    paged(batch((7,))["input_ids"], past_key_values=cache)
    pool = weakref.ref(cache._rows._pool)
    gc.disable()
    try:
        del cache
        assert pool() is None
    finally:
        gc.enable()


@torch.no_grad()
def test_out_of_pages_leaves_the_cache_as_it_was() -> None:
    plain, paged = plain_model("qwen3"), plain_model("qwen3")
    paged.set_attn_implementation("glimprouter")
    page = kv_layout(paged).page_bytes
    cache = PagedCache(paged, memory_bytes=5 * page)
    sector_pages = cache._rows._pool.available(0)  # type: ignore[union-attr]
    room = 16 * sector_pages
    ids = torch.arange(room + 1)[None] % 50 + 40
    first = paged(ids[:, : room - 3], past_key_values=cache).logits
    for _ in range(2):
        with pytest.raises(gr.OutOfPages, match=r"cannot take 4 more tokens.*memory_bytes"):
            paged(ids[:, room - 3 :], past_key_values=cache)
        assert cache.get_seq_length() == room - 3
    rest = paged(ids[:, room - 3 : room], past_key_values=cache).logits
    want = plain(ids[:, :room]).logits
    torch.testing.assert_close(torch.cat([first, rest], 1), want, rtol=0, atol=1e-4)
    with pytest.raises(gr.OutOfPages, match=f"cannot take {room + 1} more tokens behind 0"):
        paged(ids, past_key_values=PagedCache(paged, memory_bytes=5 * page))


@torch.no_grad()
def test_a_broken_pass_is_undone() -> None:
    paged = plain_model("llama")
    paged.set_attn_implementation("glimprouter")
    ids = torch.tensor(hf_pairs.raw_prompts((12, 12)))
    pieces = [(0, 5), (5, 6), (6, 12)]
    whole = PagedCache(paged)
    want = [paged(ids[:, a:b], past_key_values=whole).logits for a, b in pieces]
    cache = PagedCache(paged)

    def fail(*_: Any) -> None:
        raise RuntimeError("the forward pass broke")

    for (start, end), logits in zip(pieces, want, strict=True):
        handle = paged.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="broke"):
            paged(ids[:, start:end], past_key_values=cache)
        handle.remove()
        assert cache.get_seq_length() == start
        assert torch.equal(paged(ids[:, start:end], past_key_values=cache).logits, logits)
    handle = paged.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broke"):
        paged(ids[:, :3], past_key_values=cache)
    handle.remove()
    cache.crop(-6)
    again = paged(ids[:, 6:], past_key_values=cache).logits
    assert torch.equal(again, want[-1])
    cache.crop(-12)
    assert cache.get_seq_length() == 0
    assert cache._rows._pool.owned(0) == 0  # type: ignore[union-attr]
    cache._rows._cache.check_invariants()  # type: ignore[union-attr]


@torch.no_grad()
def test_padding_elsewhere_is_refused() -> None:
    paged = plain_model("qwen3")
    paged.set_attn_implementation("glimprouter")
    ids = torch.tensor([[40, 41, 42, 43]])
    for mask in ([[1, 1, 1, 0]], [[1, 0, 1, 1]]):
        with pytest.raises(ValueError, match=r'on the left.*padding_side="left"'):
            paged(ids, attention_mask=torch.tensor(mask), past_key_values=PagedCache(paged))
    cache = PagedCache(paged)
    paged(ids, attention_mask=torch.tensor([[0, 1, 1, 1]]), past_key_values=cache)
    with pytest.raises(ValueError, match="the same ones in every pass"):
        paged(ids[:, :1], attention_mask=torch.ones((1, 5)), past_key_values=cache)
    full = torch.zeros((1, 1, 4, 4))
    with pytest.raises(ValueError, match="a mask for every pair of tokens is not served"):
        paged(ids, attention_mask=full, past_key_values=PagedCache(paged))


def test_wrong_use_is_one_clear_error() -> None:
    plain, paged = plain_model("qwen3"), plain_model("qwen3")
    paged.set_attn_implementation("glimprouter")
    ids = torch.tensor([[40, 41]])
    with pytest.raises(ValueError, match=r'by \'sdpa\'; call model.set_attn_implementation\("gl'):
        PagedCache(plain)
    cache = PagedCache(paged)
    paged.set_attn_implementation("sdpa")
    with torch.no_grad(), pytest.raises(RuntimeError, match="does not read the pages"):
        paged(ids, past_key_values=cache)
    paged.set_attn_implementation("glimprouter")
    with pytest.raises(RuntimeError, match=r"needs a PagedPass.*past_key_values="):
        write(paged, {"input_ids": ids})
    with pytest.raises(RuntimeError, match="no gradients"):
        paged(ids, past_key_values=PagedCache(paged))
    with pytest.raises(ValueError, match="takes the negative of a number"):
        cache.crop(3)
    with pytest.raises(ValueError, match="cannot remove 1 tokens of 0"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="more than max_sequences=2"):
        write(paged, batch(), past_key_values=PagedCache(paged, max_sequences=2))
    with pytest.raises(ValueError, match="too small"):
        PagedCache(paged, memory_bytes=100)
    with pytest.raises(ValueError, match="memory_bytes must lie in"):
        PagedCache(paged, memory_bytes=0)
    odd: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=48,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            attn_implementation="glimprouter",
        )
    )
    with pytest.raises(ValueError, match="head size of 24"):
        PagedCache(odd)


def test_the_engine_takes_a_model_with_this_attention() -> None:
    """Pages serve it too, by the other way; it keeps the attention that it had."""
    paged = plain_model("qwen3")
    config = gr.RouterConfig(threshold=1.0, max_think_tokens=12, max_answer_tokens=4)
    want = RoutedModel(paged, paged, hf_pairs.TOKENIZER, config, engine="paged")
    tokens = want.generate([[40, 41]])[0].token_ids
    paged.set_attn_implementation("glimprouter")
    got = RoutedModel(paged, paged, hf_pairs.TOKENIZER, config, engine="paged")
    assert got.generate([[40, 41]])[0].token_ids == tokens
    assert paged.config._attn_implementation == "glimprouter"
