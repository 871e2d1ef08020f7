"""A pair behind two URLs: what commands that take one have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from glimprouter.cli.errors import UserError
from glimprouter.cli.torch_setup import quiet_transformers
from glimprouter.config import RouterConfig

if TYPE_CHECKING:
    from glimprouter.calibration import Calibration
    from glimprouter.hf import RoutedModel
    from glimprouter.vllm import RoutedEngines, Server

_URLS = ("small_url", "large_url")
_DIRECTORIES = ("small", "large")
_FOR_URLS = (
    "small_tokenizer",
    "large_tokenizer",
    "engine_api_key",
    "engine_timeout",
    "engine_patience",
)
# What a server has decided when it was started.
_FOR_DIRECTORIES = ("device", "dtype", "execution", "drafts", "kv_memory", "threads")


def is_behind_urls(context: typer.Context) -> bool:
    """Whether a command was given two URLs; False for two directories.

    Options that say nothing about the one that was given are refused, not ignored.

    Args:
        context: Context of the command, which knows the options that were typed.

    Raises:
        UserError: Neither, a mix of both, or an option of the other one.
    """
    urls, directories = _given(context, _URLS), _given(context, _DIRECTORIES)
    if urls and directories:
        raise UserError(
            f"{_names(directories)} and {_names(urls)} exclude each other: give both directories,"
            " or the URLs of both servers"
        )
    if not urls:
        _need_both(directories, _DIRECTORIES)
        _refuse(context, _FOR_URLS, "is for servers: it goes with --small-url and --large-url")
        return False
    _need_both(urls, _URLS)
    _refuse(
        context,
        _FOR_DIRECTORIES,
        "is not for --small-url and --large-url: the servers have loaded their models; it is an"
        " option of theirs, where they have such a thing",
    )
    return True


def open_engines(
    small_url: str,
    large_url: str,
    small_tokenizer: str | None,
    large_tokenizer: str | None,
    config: RouterConfig,
    *,
    api_key: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> RoutedEngines:
    """The pair behind two URLs; servers are asked only for a tokenizer that was not given.

    Args:
        small_url: Of the small model's server.
        large_url: Of the large model's.
        small_tokenizer: Directory, or a hub name that is on this disk; None for what the server
            has loaded.
        large_tokenizer: Likewise.
        config: Routing, sampling and limits.
        api_key: That both servers ask for; None for none.
        trust_remote_code: Whether code beside the tokenizers is run.
        **options: Of :class:`RoutedEngines`.

    Raises:
        UserError: No URL, or a tokenizer that cannot be loaded; a server that was asked for it and
            does not answer, is not of vLLM, or serves several models.
    """
    from glimprouter.vllm import RoutedEngines

    quiet_transformers()
    servers, tokenizers = [], []
    for name, url, given in (
        ("small", small_url, small_tokenizer),
        ("large", large_url, large_tokenizer),
    ):
        server = _server(f"--{name}-url", url, api_key)
        servers.append(server)
        source = given or _source(name, server)
        tokenizers.append(_tokenizer(name, source, given is None, trust_remote_code))
    small, large = servers
    return RoutedEngines(
        small, large, tokenizers[0], config, large_tokenizer=tokenizers[1], **options
    )


def check_calibration(calibration: Calibration, model: RoutedModel | RoutedEngines) -> None:
    """Checks that a calibration was made with a pair, where that can be known.

    Raises:
        ValueError: With another pair.
    """
    from glimprouter.hf import RoutedModel

    if isinstance(model, RoutedModel) or calibration.on_engines:
        calibration.check_pair(model)
        return
    typer.echo(
        "note: servers do not show their weights, so nobody has checked that the calibration"
        " belongs to these models",
        err=True,
    )


def _server(option: str, url: str, api_key: str | None) -> Server:
    from glimprouter.vllm import Server

    try:
        return Server(url, api_key=api_key)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None


def _source(name: str, server: Server) -> str:
    """What a server has loaded, by its own word."""
    from glimprouter.vllm import EngineLost, EngineRefused

    async def ask() -> str:
        try:
            return (await server.facts()).source
        finally:
            await server.close()

    try:
        return asyncio.run(ask())
    except (EngineLost, EngineRefused) as error:
        raise UserError(f"--{name}-url {error}") from error


def _tokenizer(name: str, source: str, named_by_server: bool, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except ModuleNotFoundError:
        raise
    except Exception as error:  # transformers, tokenizers and json each have their own kinds
        if named_by_server:
            raise UserError(
                f"the {name} model's server has loaded {source}, whose tokenizer is not on this"
                f" disk; give a directory that has it: --{name}-tokenizer DIR"
            ) from error
        raise UserError(f"--{name}-tokenizer {source} cannot be loaded: {error}") from error


def _given(context: typer.Context, names: Sequence[str]) -> list[str]:
    return [name for name in names if context.params.get(name) is not None]


def _need_both(given: Sequence[str], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in given]
    if missing:
        raise UserError(
            f"{_option(missing[0])} is missing: give both --small and --large (directories), or"
            " both --small-url and --large-url (servers of vLLM)"
        )


def _refuse(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuses options that were typed; one from the environment may be for another command."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(f"{_option(name)} {why}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _names(names: Sequence[str]) -> str:
    return " and ".join(map(_option, names))
