"""Errors as OpenAI's clients know them: what was wrong, of which field, and what to do."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

# Of messages of the engine: sequences have numbers there that no client knows.
_NUMBERED = re.compile(r"\b(prompt|sequence) \d+\b")


class RequestError(Exception):
    """A request that is not answered as it asks.

    Attributes:
        status: Of HTTP.
        message: For the client; no path of this machine is in it.
        param: The field, where one is to blame.
        code: A word for programs.
        headers: Of the answer.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """See the class."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "invalid_request_error"
        if self.status >= 500:
            kind = "server_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        elif self.status == 401:
            kind = "authentication_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def without_numbers(message: str) -> str:
    """A message of the engine in which "the prompt" has no number of its own."""
    return _NUMBERED.sub(r"the \1", message)


def unsupported(param: str, reason: str) -> RequestError:
    """What a request asks for and nobody here does."""
    return RequestError(f"{param!r} is refused: {reason}", param=param, code="unsupported_value")


class Failure(NamedTuple):
    """A sequence that ended without a result.

    Attributes:
        message: Why, for the client.
        status: Of HTTP.
    """

    message: str
    status: int
