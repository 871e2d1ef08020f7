"""``glimprouter generate``: two Hugging Face models of the user's write chains of thought."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from glimprouter.cli import options, render
from glimprouter.cli.errors import UserError, clean_exit, require_model_directory
from glimprouter.cli.options import DEFAULTS
from glimprouter.cli.prompts import Prompt, one_or_file
from glimprouter.cli.torch_setup import torch_dtype, use_threads
from glimprouter.config import RouterConfig
from glimprouter.trace.totals import TraceTotals

if TYPE_CHECKING:
    from glimprouter import Trace
    from glimprouter.hf import RoutedModel


class _Printer:
    """Streams the events of one sequence, each piece of text in its writer's colour."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._at_line_start = True

    def show(self, event: Any) -> None:
        if event.kind == "route":
            self._mark(f"[{event.model} H={render.format_entropy(event.entropy)}]", event.model)
        elif event.kind == "answer_start":
            self._mark("[answer]", "")
        elif event.kind == "token" and event.text:
            render.write(self._console, event.text, render.WRITER_STYLE.get(event.model, ""))
            self._at_line_start = event.text.endswith("\n")

    def _mark(self, text: str, model: str) -> None:
        self.finish_line()
        render.write(self._console, f"{text} ", f"dim {render.WRITER_STYLE.get(model, '')}")
        self._at_line_start = False

    def finish_line(self) -> None:
        if not self._at_line_start:
            render.write(self._console, "\n")
            self._at_line_start = True


def _limits(trace: Trace) -> str:
    """The budgets in force, and which of them nobody set."""
    parts = []
    for name, limit in (("think", trace.think_limit), ("answer", trace.answer_limit)):
        source = " (not set: from the contexts)" if name in trace.derived_limits else ""
        parts.append(f"{limit} tokens to {name}{source}")
    return ", ".join(parts)


def _summary(trace: Trace, tokens: int, seconds: float) -> str:
    totals = TraceTotals.of(trace)
    large, thinking = totals.large, totals.thinking
    return (
        f"{thinking.steps} steps, {large.steps} by the large model ({large.tokens} of "
        f"{thinking.tokens} thinking tokens); {tokens} tokens in {seconds:.1f} s; {_limits(trace)}"
    )


def run_generate(
    console: Console,
    model: RoutedModel,
    prompt: Prompt,
    seed: int,
    json: Path | None,
    template_options: dict[str, Any] | None = None,
) -> None:
    """Streams one chain of thought and writes its trace, also when the run is cut short.

    Args:
        console: Where the text goes; the summary goes to stderr.
        model: The pair.
        prompt: One user message, or a chat.
        seed: Seed of the sampling.
        json: Where the trace goes, or None.
        template_options: Handed to the chat templates.

    Raises:
        UserError: The engine ended the sequence with an error.
    """
    printer = _Printer(console)
    start = time.perf_counter()
    stream = model.stream([prompt], seeds=[seed], chat_template_kwargs=template_options)
    try:
        for event in stream:
            printer.show(event)
            if event.kind == "error":
                raise UserError(str(event.message))
            if event.kind == "done" and event.result is not None:
                printer.finish_line()
                seconds = time.perf_counter() - start
                summary = _summary(event.result.trace, len(event.result.token_ids), seconds)
                typer.echo(summary, err=True)
    finally:
        printer.finish_line()
        if json is not None:
            stream.trace(0).to_jsonl(json)
            typer.echo(f"trace: {json}", err=True)


def trace_paths(json: Path | None, prompts: int) -> list[Path | None]:
    """Where each trace goes: with several prompts, the prompt's number comes before the suffix."""
    if json is None or prompts == 1:
        return [json] * prompts
    return [json.with_name(f"{json.stem}.{index}{json.suffix}") for index in range(prompts)]


def generate(
    context: typer.Context,
    small: options.Small,
    large: options.Large,
    prompt: options.Prompt = None,
    file: options.File = None,
    json: options.Json = None,
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
    route: options.Route = DEFAULTS.route,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    execution: options.Execution = "auto",
    drafts: options.Drafts = "auto",
    kv_memory: options.KvMemory = None,
    thinking: options.Thinking = "auto",
    think_start: options.ThinkStart = None,
    think_end: options.ThinkEnd = None,
    chat_template_kwargs: options.TemplateOptions = None,
    threads: options.Threads = None,
    trust_remote_code: options.TrustRemoteCode = False,
    no_color: options.NoColor = False,
    plain: options.Plain = False,
) -> None:
    """Let any two Hugging Face causal language models write chains of thought together.

    Several prompts are answered one after the other.
    """
    given = locals()
    with clean_exit():
        settled = options.read_calibration(context, calibration)
        typed = {name: given[name] for name in RouterConfig.__dataclass_fields__}
        config = DEFAULTS.replace(**typed | (settled.router_options() if settled else {}))
        if config.route == "manual":
            raise UserError("--route manual is for programs; give auto, small or large")
        prompts = one_or_file(prompt, file)
        paths = trace_paths(json, len(prompts))
        for path in paths:
            options.check_output_path("--json", path)
        memory = options.bytes_of(kv_memory)
        require_model_directory("--small", small)
        require_model_directory("--large", large)
        rendering = options.template_options_of(chat_template_kwargs)
        markers = options.thinking_of(thinking, think_start, think_end)
        if threads is not None:
            use_threads(threads)
        model = options.load_pair(
            small,
            large,
            config,
            device=device,
            dtype=torch_dtype(dtype),
            execution=execution,
            drafts=options.drafts_of(drafts),
            kv_memory_bytes=memory,
            thinking=markers,
            trust_remote_code=trust_remote_code,
        )
        if settled is not None:
            settled.check_pair(model)
        console = render.make_console(plain=plain, no_color=no_color)
        for one, path in zip(prompts, paths, strict=True):
            run_generate(console, model, one, seed, path, rendering)
