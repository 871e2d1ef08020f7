"""What a request says about sampling, routing and lengths, as options of a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glimprouter.config import DEFAULT_ANSWER_TOKENS, RouterConfig
from glimprouter.serve.errors import RequestError
from glimprouter.serve.requests import GenerationRequest

_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_ANSWER_SHARE = 4  # of the shorter context, as where nobody sized the answer


def overrides_of(
    request: GenerationRequest, config: RouterConfig, contexts: Mapping[str, int]
) -> dict[str, Any]:
    """Fields of :class:`RouterConfig` that are the request's own.

    ``max_tokens`` cuts what is written, thinking included. No more than that is reserved.

    Args:
        request: The request.
        config: Of the pair.
        contexts: Positions of each model, by name.

    Raises:
        RequestError: A value out of its range.
    """
    sampling = {name: getattr(request, name) for name in _SAMPLING}
    routing = request.glimprouter.model_dump(exclude={"trace"})
    given = {name: value for name, value in {**sampling, **routing}.items() if value is not None}
    if given.get("threshold") == "inf":
        given["threshold"] = float("inf")
    try:
        wanted = config.replace(**given)
    except (TypeError, ValueError) as error:
        name = str(error).split()[0]
        param = f"glimprouter.{name}" if name in routing else name
        raise RequestError(str(error), param=param, code="invalid_value") from None
    if request.max_tokens is None:
        return given
    most = min(request.max_tokens, 2**31 - 1)
    answer = wanted.max_answer_tokens
    if answer is None:
        answer = min(DEFAULT_ANSWER_TOKENS, min(contexts.values()) // _ANSWER_SHARE)
    given["max_answer_tokens"] = min(answer, most)
    if wanted.max_think_tokens is not None:
        given["max_think_tokens"] = min(wanted.max_think_tokens, most)
    return given
