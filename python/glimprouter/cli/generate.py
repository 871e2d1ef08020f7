"""``glimprouter generate``: two Hugging Face models of the user's write one chain of thought."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from glimprouter.calibration import Calibration
from glimprouter.cli import render
from glimprouter.cli.errors import UserError, clean_exit, require_model_directory
from glimprouter.cli.torch_setup import DTYPES, quiet_transformers, torch_dtype, use_threads
from glimprouter.config import RouterConfig

if TYPE_CHECKING:
    from glimprouter import Trace
    from glimprouter.hf import RoutedModel

DEFAULTS = RouterConfig()

Small = Annotated[Path, typer.Option("--small", help="Directory of the small model.")]
Large = Annotated[Path, typer.Option("--large", help="Directory of the large model.")]
Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help="One user message.")]
File = Annotated[
    Path | None, typer.Option("--file", "-f", help="File with the user message; - is stdin.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the trace here, as JSON lines.")]
Threshold = Annotated[
    float, typer.Option(help="tau in nats; not portable between small models.", metavar="NATS")
]
ComparisonName = Annotated[
    str, typer.Option(help="H > tau (paper) or H >= tau (published code) goes to the large model.")
]
EntropyTopK = Annotated[
    int | None,
    typer.Option(
        help="Entropy of the k most likely only; 20 is the published code's.", metavar="K"
    ),
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="File of `glimprouter calibrate`: its threshold, comparison and entropy.",
    ),
]
Temperature = Annotated[float, typer.Option(help="Of the sampling; 0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus mass in (0, 1]; 1 is off.")]
TopK = Annotated[int, typer.Option(help="Tokens kept; 0 is off.")]
MinP = Annotated[float, typer.Option(help="Least probability over the largest; 0 is off.")]
MaxStep = Annotated[int, typer.Option(help="Tokens of one step.")]
MaxThink = Annotated[int, typer.Option(help="Tokens of all steps; then the thinking is closed.")]
MaxAnswer = Annotated[int, typer.Option(help="Tokens of the answer.")]
FirstLarge = Annotated[int, typer.Option(help="First steps that go to the large model unseen.")]
AnswerModel = Annotated[str, typer.Option(help="Who writes the answer: large or small.")]
Guard = Annotated[bool, typer.Option(help="Close the thinking when steps repeat in a cycle.")]
Route = Annotated[str, typer.Option(help="auto, or every step by one model: small, large.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the sampling.")]
Dtype = Annotated[str, typer.Option(help=f"Of the weights: {', '.join(DTYPES)}.")]
ThinkStart = Annotated[str, typer.Option(help="Token that opens thinking; empty: there is none.")]
ThinkEnd = Annotated[str, typer.Option(help="Token that ends thinking; empty: there is none.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads of torch.", show_default="one a core"),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code found in the directories.")
]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colours.")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Plain text, as where the output is no terminal.")
]


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The user message from exactly one of the two options.

    Raises:
        UserError: None or both given, an unreadable file, or an empty message.
    """
    if (prompt is None) == (file is None):
        raise UserError("give the prompt by exactly one of --prompt TEXT and -f FILE")
    text = prompt
    if file is not None:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the prompt from {file}: {error}") from error
    if not text or not text.strip():
        raise UserError("the prompt is empty; give some text")
    return text


def check_output_path(option: str, path: Path | None) -> None:
    """Finds out before the run, not after it, that a file cannot be written.

    Args:
        option: That the path was given by.
        path: Of the file, or None.

    Raises:
        UserError: The path is a directory, or its directory does not exist.
    """
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{option} {path}: give a file in a directory that exists")


def load_pair(small: Path, large: Path, config: RouterConfig, **options: Any) -> RoutedModel:
    """The pair in two local directories.

    Args:
        small: Of the small model.
        large: Of the large model.
        config: As ``RoutedModel`` takes it.
        **options: Of ``RoutedModel.from_pretrained``.

    Raises:
        UserError: Something in the directories cannot be loaded.
    """
    from glimprouter.hf import RoutedModel

    quiet_transformers()
    try:
        return RoutedModel.from_pretrained(small, large, config=config, **options)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # transformers, safetensors and json each have their own kinds
        raise UserError(f"cannot load {small} and {large}: {error}") from error


def read_calibration(context: typer.Context, path: Path | None) -> Calibration | None:
    """What a calibration file holds, None without one.

    Args:
        context: Of the command, which knows the options that were typed.
        path: Of the file, or None.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no calibration.
        UserError: An option was typed that the file settles.
    """
    if path is None:
        return None
    calibration = Calibration.from_json(path)
    for name in calibration.router_options():
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            option = "--" + name.replace("_", "-")
            raise UserError(
                f"{option} and --calibration exclude each other: the threshold in {path} belongs to"
                " the comparison and the entropy that it was found with"
            )
    return calibration


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


def _summary(trace: Trace, tokens: int, seconds: float) -> str:
    large = [step for step in trace.steps if step.model == "large"]
    large_tokens = sum(step.num_tokens for step in large)
    think_tokens = sum(step.num_tokens for step in trace.steps)
    return (
        f"{len(trace.steps)} steps, {len(large)} by the large model ({large_tokens} of "
        f"{think_tokens} thinking tokens); {tokens} tokens in {seconds:.1f} s"
    )


def run_generate(
    console: Console, model: RoutedModel, prompt: str, seed: int, json: Path | None
) -> None:
    """Streams one chain of thought and writes its trace, also when the run is cut short.

    Args:
        console: Where the text goes; the summary goes to stderr.
        model: The pair.
        prompt: One user message.
        seed: Of the sampling.
        json: Where the trace goes, or None.

    Raises:
        UserError: The engine ended the sequence with an error.
    """
    printer = _Printer(console)
    start = time.perf_counter()
    stream = model.stream([prompt], seeds=[seed])
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


def generate(
    context: typer.Context,
    small: Small,
    large: Large,
    prompt: Prompt = None,
    file: File = None,
    json: Json = None,
    threshold: Threshold = DEFAULTS.threshold,
    comparison: ComparisonName = DEFAULTS.comparison,
    entropy_top_k: EntropyTopK = DEFAULTS.entropy_top_k,
    calibration: CalibrationFile = None,
    temperature: Temperature = DEFAULTS.temperature,
    top_p: TopP = DEFAULTS.top_p,
    top_k: TopK = DEFAULTS.top_k,
    min_p: MinP = DEFAULTS.min_p,
    max_step_tokens: MaxStep = DEFAULTS.max_step_tokens,
    max_think_tokens: MaxThink = DEFAULTS.max_think_tokens,
    max_answer_tokens: MaxAnswer = DEFAULTS.max_answer_tokens,
    first_steps_large: FirstLarge = DEFAULTS.first_steps_large,
    answer_model: AnswerModel = DEFAULTS.answer_model,
    repetition_guard: Guard = DEFAULTS.repetition_guard,
    route: Route = DEFAULTS.route,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    think_start: ThinkStart = "<think>",
    think_end: ThinkEnd = "</think>",
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
    no_color: NoColor = False,
    plain: Plain = False,
) -> None:
    """Let any two Hugging Face causal language models write one chain of thought together."""
    options = locals()
    with clean_exit():
        settled = read_calibration(context, calibration)
        typed = {name: options[name] for name in RouterConfig.__dataclass_fields__}
        config = DEFAULTS.replace(**typed | (settled.router_options() if settled else {}))
        if config.route == "manual":
            raise UserError("--route manual is for programs; give auto, small or large")
        message = read_prompt(prompt, file)
        check_output_path("--json", json)
        require_model_directory("--small", small)
        require_model_directory("--large", large)
        if threads is not None:
            use_threads(threads)
        model = load_pair(
            small,
            large,
            config,
            dtype=torch_dtype(dtype),
            think_start=think_start or None,
            think_end=think_end or None,
            trust_remote_code=trust_remote_code,
        )
        if settled is not None:
            settled.check_pair(model)
        run_generate(
            render.make_console(plain=plain, no_color=no_color), model, message, seed, json
        )
