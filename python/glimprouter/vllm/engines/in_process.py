"""An engine of this process: ``vllm.v1.engine.async_llm.AsyncLLM``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from glimprouter.vllm.engines.base import (
    EngineFacts,
    EngineLost,
    EngineRefused,
    EngineRequest,
    Piece,
)
from glimprouter.vllm.protocol import ARGUMENT, LOGPROBS_MODE

GATE = "glimprouter.vllm:GlimpGate"


def gated_engine(model: str | Path, **options: Any) -> Any:
    """Starts an ``AsyncLLM`` with the gate in it.

    Args:
        model: Directory (or hub name) of a model.
        **options: Further arguments of ``AsyncEngineArgs``: ``dtype``, ``max_model_len``,
            ``block_size``, ``tensor_parallel_size``, ...

    Raises:
        ModuleNotFoundError: vLLM is not installed.
        ValueError: Options that a gate cannot be combined with.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    if options.get("speculative_config"):
        raise ValueError(
            "the gate cannot be combined with speculative decoding of the engine: leave"
            " speculative_config out"
        )
    mode = options.pop("logprobs_mode", LOGPROBS_MODE)
    if mode != LOGPROBS_MODE:
        raise ValueError(f"the gate answers by logprobs_mode={LOGPROBS_MODE!r}, got {mode!r}")
    own = [*(options.pop("logits_processors", None) or ()), GATE]
    options.setdefault("enable_prefix_caching", True)
    arguments = AsyncEngineArgs(
        model=str(model), logits_processors=own, logprobs_mode=mode, **options
    )
    return AsyncLLM.from_engine_args(arguments)


class InProcessEngine:
    """Sends requests to an ``AsyncLLM``."""

    def __init__(self, engine: Any) -> None:
        """Nothing is asked.

        Args:
            engine: The ``AsyncLLM``.

        Raises:
            TypeError: Another engine.
        """
        if not all(hasattr(engine, name) for name in ("generate", "abort", "vllm_config")):
            raise TypeError(
                "an engine is a URL, a glimprouter.vllm.Server, or vLLM's AsyncLLM, got"
                f" {type(engine).__name__}"
            )
        self._engine = engine

    async def facts(self) -> EngineFacts:
        """What it is."""
        import vllm

        model = self._engine.vllm_config.model_config
        generation = model.try_get_generation_config() or {}
        ends = generation.get("eos_token_id")
        ids = (ends,) if isinstance(ends, int) else tuple(ends or ())
        name = str(model.model)
        return EngineFacts(name, int(model.max_model_len), vllm.__version__, ids, name)

    async def write(self, request: EngineRequest) -> AsyncGenerator[Piece, None]:
        """The answer while it is written, or as a whole."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kinds = RequestOutputKind
        params = SamplingParams(
            temperature=0.0,
            max_tokens=request.max_tokens,
            stop_token_ids=list(request.stop_token_ids),
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            output_kind=kinds.FINAL_ONLY if request.whole else kinds.DELTA,
            extra_args={ARGUMENT: request.gate.to_json()},
        )
        prompt = {"prompt_token_ids": list(request.prompt)}
        answers = self._engine.generate(prompt, params, request.request_id)
        try:
            async for answer in answers:
                yield _piece(answer)
        except ValueError as error:
            raise EngineRefused(f"the engine refused a request: {error}") from error
        except Exception as error:
            if not self._engine.errored:
                raise
            raise EngineLost(f"the engine of this process has died: {error}") from error
        finally:
            await answers.aclose()

    async def close(self) -> None:
        """Nothing: whoever made the engine shuts it down."""


def _piece(answer: Any) -> Piece:
    (output,) = answer.outputs
    tokens = list(output.token_ids)
    rows = output.logprobs or []
    values = [float(row[token].logprob) for token, row in zip(tokens, rows, strict=True)]
    return Piece(tokens, values, answer.num_cached_tokens, output.finish_reason)
