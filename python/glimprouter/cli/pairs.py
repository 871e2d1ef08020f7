"""The pair that a command works with: loaded from two directories, or behind two URLs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from glimprouter.cli import options
from glimprouter.cli.engines import open_engines
from glimprouter.cli.errors import require_model_directory
from glimprouter.cli.torch_setup import torch_dtype, use_threads
from glimprouter.config import RouterConfig

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel
    from glimprouter.vllm import RoutedEngines


def require_directories(given: Mapping[str, Any]) -> None:
    """Checks both directories, before torch is imported.

    Args:
        given: The options of the command, by name.

    Raises:
        UserError: One holds no model.
    """
    for name in ("small", "large"):
        require_model_directory(f"--{name}", given[name])


def pair_of(config: RouterConfig, given: Mapping[str, Any], **own: Any) -> RoutedModel:
    """The pair in two directories, loaded.

    Args:
        config: Routing, sampling and limits.
        given: The options of the command, by name.
        **own: Of ``RoutedModel.from_pretrained``.

    Raises:
        UserError: An option that is none, or something in the directories cannot be loaded.
    """
    memory = options.bytes_of(given["kv_memory"])
    markers = options.thinking_of(given["thinking"], given["think_start"], given["think_end"])
    if given["threads"] is not None:
        use_threads(given["threads"])
    return options.load_pair(
        given["small"],
        given["large"],
        config,
        device=given["device"],
        dtype=torch_dtype(given["dtype"]),
        execution=given["execution"],
        kv_memory_bytes=memory,
        thinking=markers,
        trust_remote_code=given["trust_remote_code"],
        **own,
    )


@contextmanager
def engines_of(
    config: RouterConfig, given: Mapping[str, Any], **own: Any
) -> Iterator[RoutedEngines]:
    """The pair behind two URLs, checked; closed at the end.

    Args:
        config: Routing, sampling and limits.
        given: The options of the command, by name.
        **own: Of :class:`RoutedEngines`.

    Raises:
        UserError: No URL, or a tokenizer that cannot be loaded.
        EngineLost: A server does not answer.
        EngineRefused: It cannot serve.
    """
    model = open_engines(
        given["small_url"],
        given["large_url"],
        given["small_tokenizer"],
        given["large_tokenizer"],
        config,
        api_key=given["engine_api_key"],
        trust_remote_code=given["trust_remote_code"],
        thinking=options.thinking_of(given["thinking"], given["think_start"], given["think_end"]),
        timeout=given["engine_timeout"],
        patience=given["engine_patience"],
        **own,
    )
    try:
        model.check()
        yield model
    finally:
        model.close()
