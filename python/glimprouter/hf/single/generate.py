"""Routing behind `large.generate(...)`: for code that calls `generate` and keeps calling it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from glimprouter.config import DEFAULT_THINK_TOKENS, RouterConfig
from glimprouter.hf.model import RoutedModel
from glimprouter.hf.pair.boundaries import eos_ids as own_eos_ids
from glimprouter.hf.pair.prompts import EncodedPrompt
from glimprouter.hf.pair.translation import same_vocabulary

_MIRRORED = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_DEFAULT_ANSWER_SHARE = 4  # of max_new_tokens one in so many is kept for the answer


def routed_generate(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    *,
    small: Any,
    small_tokenizer: Any = None,
    large_tokenizer: Any = None,
    router_config: RouterConfig | None = None,
    engine: Any = "auto",
    drafts: Any = "auto",
    **model_kwargs: Any,
) -> torch.Tensor | GenerateDecoderOnlyOutput:
    """Pass it as ``custom_generate``: the model that generates is the large one.

    ``large.generate(**inputs, custom_generate=routed_generate, small=small, max_new_tokens=1000)``.
    Sampling options, ``max_new_tokens`` and end-of-sequence ids are those of the generation config;
    ``torch.manual_seed`` decides the draws.

    Args:
        model: The large model (given by ``generate``).
        input_ids: int64 ``[B, T]``, padded on the left where ``attention_mask`` says so.
        logits_processor: Only what mirrors the sampling options.
        stopping_criteria: Only length and end of sequence.
        generation_config: Configuration of the call.
        small: The small model.
        small_tokenizer: Its tokenizer; None loads it from where the small model came from.
        large_tokenizer: Tokenizer of the large model, where it has another vocabulary; prompts and
            results are in that one.
        router_config: Threshold and limits; its sampling options are not used. The thinking gets
            what ``max_new_tokens`` leaves of ``max_answer_tokens`` (None: a quarter) and the
            closing ids.
        engine: As in :class:`RoutedModel`.
        drafts: Likewise.
        **model_kwargs: ``attention_mask``; the rest of what ``generate`` prepares is not needed.

    Returns:
        int64 ``[B, T + new]`` padded on the right, or a ``GenerateDecoderOnlyOutput`` with it when
        ``return_dict_in_generate`` is set.

    Raises:
        ValueError: An option of ``generate`` that routing cannot honour, no room to think, or a
            prompt with special tokens that the small model does not have.
    """
    _check_options(logits_processor, stopping_criteria, generation_config)
    room = int(generation_config.max_length) - input_ids.shape[1]
    eos = generation_config.eos_token_id
    eos_ids = [eos] if isinstance(eos, int) else list(eos or ())
    small_tokenizer = small_tokenizer or _tokenizer_of(small)
    different = large_tokenizer and not same_vocabulary(small_tokenizer, large_tokenizer)
    routed = RoutedModel(
        small,
        model,
        small_tokenizer,
        large_tokenizer=large_tokenizer,
        eos_token_ids=(
            {"small": own_eos_ids(small_tokenizer, small), "large": eos_ids}
            if different
            else eos_ids
        ),
        engine=engine,
        drafts=drafts,
    )
    limits = router_config or RouterConfig()
    if limits.max_answer_tokens is None:
        limits = limits.replace(max_answer_tokens=room // _DEFAULT_ANSWER_SHARE)
    routed.config = _with_call(limits, generation_config, room, len(routed.boundary.close_ids))
    prompts = _prompts(input_ids, model_kwargs.get("attention_mask"))
    if routed.translation is not None:
        prompts = [
            EncodedPrompt(None, small=routed.translation.convert(ids, source=1), large=ids)
            for ids in prompts
        ]
    results = routed.generate(prompts, seeds=int(torch.randint(2**62, ()).item()))
    new = [result.token_ids for result in results]
    padding = generation_config.pad_token_id
    if padding is None:
        padding = eos_ids[0] if eos_ids else 0
    longest = max(map(len, new))
    columns = torch.tensor([[*ids, *[padding] * (longest - len(ids))] for ids in new])
    sequences = torch.cat([input_ids, columns.to(input_ids)], dim=1)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]
    return sequences


def _check_options(processors: Any, criteria: Any, config: Any) -> None:
    for kind, items, known in (
        ("logits processor", processors, _MIRRORED),
        ("stopping criterion", criteria, (MaxLengthCriteria, EosTokenCriteria)),
    ):
        for item in items or ():
            if not isinstance(item, known):
                raise ValueError(
                    f"routed_generate cannot honour the {kind} {type(item).__name__}; use"
                    " RoutedModel or StepRouter in your own loop"
                )
    if config.num_beams != 1 or config.num_return_sequences != 1:
        raise ValueError("routed_generate has no beams and returns one sequence a prompt")
    for name in _OUTPUTS:
        if getattr(config, name, None):
            raise ValueError(f"routed_generate does not return what {name} asks for")


def _with_call(limits: RouterConfig, config: Any, room: int, closing: int) -> RouterConfig:
    """The call's sampling options, and limits that fit into what it may generate."""
    assert limits.max_answer_tokens is not None
    thinking = room - limits.max_answer_tokens - closing
    if thinking < 1:
        raise ValueError(
            f"max_new_tokens={room} leaves no room to think: {limits.max_answer_tokens} are kept"
            f" for the answer and {closing} for closing the thinking; raise it, or lower"
            " router_config.max_answer_tokens"
        )
    sampling: dict[str, Any] = {"temperature": 0.0}
    if config.do_sample:
        sampling = {
            "temperature": float(1.0 if config.temperature is None else config.temperature),
            "top_p": float(config.top_p or 1.0),
            "top_k": int(config.top_k or 0),
            "min_p": float(config.min_p or 0.0),
        }
    wanted = DEFAULT_THINK_TOKENS if limits.max_think_tokens is None else limits.max_think_tokens
    return limits.replace(**sampling, max_think_tokens=min(wanted, thinking))


def _prompts(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[Any]:
    if attention_mask is None:
        return [[int(token) for token in row] for row in input_ids.tolist()]
    return [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]


def _tokenizer_of(small: Any) -> Any:
    try:
        return AutoTokenizer.from_pretrained(small.name_or_path)
    except Exception as error:  # whatever is wrong with the place: say what to do
        raise ValueError(
            f"cannot load the small model's tokenizer from {small.name_or_path!r}; pass"
            " small_tokenizer="
        ) from error
