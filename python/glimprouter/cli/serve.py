"""``glimprouter serve``: a pair behind an endpoint that OpenAI's clients know."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glimprouter.cli import options
from glimprouter.cli.engines import check_calibration, is_behind_urls
from glimprouter.cli.errors import UserError, clean_exit
from glimprouter.cli.options import DEFAULTS
from glimprouter.cli.pairs import engines_of, pair_of, require_directories
from glimprouter.config import RouterConfig

if TYPE_CHECKING:
    import socket

    from glimprouter.serve.options import ServerOptions
    from glimprouter.serve.pair import ServedPair


def _size_of(option: str, text: str) -> int:
    try:
        size = options.bytes_of(text)
    except UserError as error:
        raise UserError(str(error).replace("--kv-memory", option)) from None
    assert size is not None
    return size


def _check_save_dir(directory: Path | None) -> None:
    """Finds out at the start that nothing could be saved at the end.

    Raises:
        UserError: It is no directory that can be written to.
    """
    if directory is None:
        return
    if not directory.is_dir() or not os.access(directory, os.W_OK):
        raise UserError(f"--save-dir {directory} must be a directory that can be written to")


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_server(model: ServedPair, settings: ServerOptions, listener: socket.socket) -> None:
    """Serves until a signal ends it.

    Args:
        model: The pair.
        settings: Limits and names.
        listener: A listening socket.

    Raises:
        UserError: The engine could not be started.
    """
    from glimprouter.serve.run import make_server

    logging.basicConfig(level=logging.WARNING)
    server = make_server(model, settings)
    typer.echo(f"glimprouter serves {settings.model_name} at {_address(listener)}")
    try:
        asyncio.run(server.serve(sockets=[listener]))
    except SystemExit:
        raise UserError("the server could not start; see above") from None


def serve(
    context: typer.Context,
    small: options.SmallOrUrl = None,
    large: options.LargeOrUrl = None,
    small_url: options.SmallUrl = None,
    large_url: options.LargeUrl = None,
    small_tokenizer: options.SmallTokenizer = None,
    large_tokenizer: options.LargeTokenizer = None,
    engine_api_key: options.EngineApiKey = None,
    engine_timeout: options.EngineTimeout = 120.0,
    engine_patience: options.EnginePatience = 60.0,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    model_name: Annotated[str, typer.Option(help="Name that requests give.")] = "glimprouter",
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="GLIMPROUTER_API_KEY", help="Requests must bring it.", show_envvar=True
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that requests may be sent to, besides those of this machine; repeatable.",
            show_default="any with --api-key or another --host",
        ),
    ] = None,
    threshold: options.Threshold = DEFAULTS.threshold,
    comparison: options.ComparisonName = DEFAULTS.comparison,
    entropy_top_k: options.EntropyTopK = DEFAULTS.entropy_top_k,
    calibration: options.CalibrationFile = None,
    temperature: options.Temperature = DEFAULTS.temperature,
    top_p: options.TopP = DEFAULTS.top_p,
    top_k: options.TopK = DEFAULTS.top_k,
    min_p: options.MinP = DEFAULTS.min_p,
    max_step_tokens: options.MaxStep = DEFAULTS.max_step_tokens,
    max_think_tokens: options.MaxThink = DEFAULTS.max_think_tokens,
    max_answer_tokens: options.MaxAnswer = DEFAULTS.max_answer_tokens,
    first_steps_large: options.FirstLarge = DEFAULTS.first_steps_large,
    large_tokens: options.LargeTokens = DEFAULTS.large_tokens,
    answer_model: options.AnswerModel = DEFAULTS.answer_model,
    repetition_guard: options.Guard = DEFAULTS.repetition_guard,
    max_sequences: Annotated[
        int, typer.Option(min=1, help="Sequences that are written at a time.")
    ] = 64,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Sequences that may wait; then requests get a 429.")
    ] = 256,
    max_body: Annotated[str, typer.Option(help="Size of a request, as 4MiB.")] = "4MiB",
    max_connections: Annotated[int, typer.Option(min=1, help="Open at a time.")] = 512,
    send_seconds: Annotated[
        float, typer.Option(min=1.0, help="After which a client that reads nothing is dropped.")
    ] = 60.0,
    save_dir: Annotated[
        Path | None,
        typer.Option(help="When stopped, save what runs here instead of waiting for its end."),
    ] = None,
    stop_seconds: Annotated[
        int | None,
        typer.Option(
            min=0, help="Time to end, when stopped.", show_default="as long as sequences take"
        ),
    ] = None,
    live_view: Annotated[bool, typer.Option(help="Show at / what is being written.")] = True,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    execution: options.Execution = "auto",
    drafts: options.Drafts = "auto",
    kv_memory: options.KvMemory = None,
    thinking: options.Thinking = "auto",
    think_start: options.ThinkStart = None,
    think_end: options.ThinkEnd = None,
    threads: options.Threads = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Serve a pair to OpenAI's clients, with /metrics and a page that shows what is written.

    The pair is in two directories, and runs here, or behind the URLs of two servers of vLLM.
    Options of sampling and routing are what requests have that do not set their own.
    """
    given = locals()
    with clean_exit():
        from glimprouter.serve.hosts import hosts_of, is_loopback
        from glimprouter.serve.options import ServerOptions
        from glimprouter.serve.run import listen

        settled = options.read_calibration(context, calibration)
        typed = {n: given[n] for n in RouterConfig.__dataclass_fields__.keys() & given.keys()}
        config = DEFAULTS.replace(**typed | (settled.router_options() if settled else {}))
        settings = ServerOptions(
            model_name=model_name,
            api_key=api_key,
            allowed_hosts=hosts_of(host, api_key, allowed_host or ()),
            max_waiting=max_waiting,
            max_body_bytes=_size_of("--max-body", max_body),
            max_connections=max_connections,
            send_seconds=send_seconds,
            save_dir=save_dir,
            stop_seconds=stop_seconds,
            live_view=live_view,
        )
        _check_save_dir(save_dir)
        if api_key is not None and not api_key.strip():
            raise UserError("--api-key (or GLIMPROUTER_API_KEY) is empty; leave it out for none")
        urls = is_behind_urls(context)
        listener = listen(host, port)  # before minutes of loading
        own = {"max_sequences": max_sequences, "on_invalid": "end"}
        with ExitStack() as stack:
            if urls:
                model: ServedPair = stack.enter_context(engines_of(config, given, **own))
            else:
                require_directories(given)
                drafted = options.drafts_of(drafts)
                model = pair_of(config, given, drafts=drafted, **own)
            if settled is not None:
                check_calibration(settled, model)
            if not is_loopback(host) and api_key is None:
                typer.echo(
                    f"warning: {host} can be reached from elsewhere, and there is no --api-key",
                    err=True,
                )
            run_server(model, settings, listener)
