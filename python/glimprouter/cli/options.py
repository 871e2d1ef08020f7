"""Options that several commands share, and what they stand for: a pair of models, a calibration."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glimprouter.calibration import Calibration
from glimprouter.cli.errors import UserError
from glimprouter.cli.torch_setup import DTYPES, quiet_transformers
from glimprouter.config import RouterConfig
from glimprouter.files import check_writable

if TYPE_CHECKING:
    from glimprouter.hf import RoutedModel, ThinkingFormat

DEFAULTS = RouterConfig()

Small = Annotated[Path, typer.Option("--small", help="Directory of the small model.")]
Large = Annotated[Path, typer.Option("--large", help="Directory of the large model.")]
SmallOrUrl = Annotated[
    Path | None, typer.Option("--small", help="Directory of the small model; or give --small-url.")
]
LargeOrUrl = Annotated[
    Path | None, typer.Option("--large", help="Directory of the large model; or give --large-url.")
]
SmallUrl = Annotated[
    str | None,
    typer.Option(help="Server of vLLM with the small model and the gate.", metavar="URL"),
]
LargeUrl = Annotated[
    str | None,
    typer.Option(help="Server of vLLM with the large model and the gate.", metavar="URL"),
]
_TOKENIZER_DEFAULT = "what its server serves, where that is on this disk"
SmallTokenizer = Annotated[
    str | None,
    typer.Option(
        help="Directory of the tokenizer behind --small-url, or a hub name that is on this disk.",
        metavar="DIR",
        show_default=_TOKENIZER_DEFAULT,
    ),
]
LargeTokenizer = Annotated[
    str | None,
    typer.Option(help="Likewise of --large-url.", metavar="DIR", show_default=_TOKENIZER_DEFAULT),
]
EngineApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="GLIMPROUTER_ENGINE_API_KEY",
        help="That the servers behind both URLs ask for.",
        show_envvar=True,
    ),
]
EngineTimeout = Annotated[
    float,
    typer.Option(
        help="Seconds without a token after which a request to a server behind a URL counts as"
        " lost, and is sent again. A long prompt is silent while it is read.",
        metavar="SECONDS",
    ),
]
EnginePatience = Annotated[
    float,
    typer.Option(
        help="Seconds that a server behind a URL may stay away before its sequences end.",
        metavar="SECONDS",
    ),
]
Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help="One user message.")]
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
MaxThink = Annotated[
    int | None,
    typer.Option(
        help="Tokens of all steps; then the thinking is closed.",
        show_default="8192, or what the contexts leave",
    ),
]
MaxAnswer = Annotated[
    int | None,
    typer.Option(
        help="Tokens of the answer.", show_default="2048, or a quarter of the shorter context"
    ),
]
FirstLarge = Annotated[int, typer.Option(help="First steps that go to the large model unseen.")]
LargeTokens = Annotated[
    int | None,
    typer.Option(
        help="First tokens that the large model writes of a step that goes to it; the small one"
        " writes the rest.",
        show_default="the whole step",
    ),
]
AnswerModel = Annotated[str, typer.Option(help="Who writes the answer: large or small.")]
Guard = Annotated[bool, typer.Option(help="Close the thinking when steps repeat in a cycle.")]
Route = Annotated[str, typer.Option(help="auto, or every step by one model: small, large.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the sampling.")]
Dtype = Annotated[str, typer.Option(help=f"Of the weights: {', '.join(DTYPES)}.")]
Thinking = Annotated[
    str,
    typer.Option(
        help="How the models mark their thinking: auto (what the tokenizers have), none, or one of"
        " think, harmony, mistral, seed, gemma, cohere."
    ),
]
ThinkStart = Annotated[
    str | None, typer.Option(help="Other marker that opens thinking; with --think-end.")
]
ThinkEnd = Annotated[
    str | None, typer.Option(help="Other marker that ends it; with --think-start.")
]
TemplateOptions = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        help="Options of the chat templates as JSON, such as '{\"enable_thinking\": false}'.",
    ),
]
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
_FILE = typer.Option(
    "--file",
    "-f",
    help="Prompts, one a line; in a .jsonl file each line is a JSON string, a chat (a list of"
    ' messages), or an object with "prompt" or "messages". - is stdin, as text.',
)
File = Annotated[Path | None, _FILE]
PromptFile = Annotated[Path, _FILE]
Device = Annotated[
    str | None,
    typer.Option(help="Where both models go, such as cuda:0.", show_default="the CPU"),
]
KvMemory = Annotated[
    str | None,
    typer.Option(
        "--kv-memory",
        help="Memory for keys and values, in bytes or as 512MiB, 8GiB, 8GB.",
        show_default="what the prompts need",
    ),
]
Execution = Annotated[
    str,
    typer.Option(
        help="How forward passes run: auto (graphs on a GPU), eager, graphs, compiled.",
    ),
]
Drafts = Annotated[
    str,
    typer.Option(
        help="Tokens that the small model may draft for a sequence that waits for the large one:"
        " auto, or 0 to 16. They change no token.",
    ),
]
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}


def bytes_of(text: str | None) -> int | None:
    """A size such as ``8GiB``, ``500 MB`` or ``1048576``, in bytes; None without one.

    Raises:
        UserError: It is none, or less than a byte.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    unit = _UNITS.get(found[2].lower()) if found else None
    count = int(Fraction(found[1]) * unit) if found and unit else 0
    if not 1 <= count < 2**63:
        raise UserError(f"--kv-memory must be a size such as 512MiB or 8GiB, got {text!r}")
    return count


def drafts_of(text: str) -> int | str:
    """``"auto"`` or a number, as ``RoutedModel`` takes it.

    Raises:
        UserError: Neither.
    """
    from glimprouter.hf.run.drafting import check_drafts

    drafts = int(text) if re.fullmatch(r"\d{1,9}", text) else text
    try:
        check_drafts(drafts)
    except ValueError as error:
        raise UserError(f"--drafts: {error}") from error
    return drafts


def thinking_of(name: str, start: str | None, end: str | None) -> str | ThinkingFormat | None:
    """How the models mark their thinking, as ``RoutedModel`` takes it.

    Args:
        name: Of a known format, ``"auto"`` or ``"none"``.
        start: Marker of another format, None where a known one is wanted.
        end: Likewise.

    Raises:
        UserError: One marker without the other, or an unknown name.
    """
    from glimprouter.hf.pair.thinking import ThinkingFormat, check_thinking

    if (start is None) != (end is None):
        raise UserError("--think-start and --think-end go together")
    if start is not None and end is not None:
        if not start or not end:
            raise UserError("a marker is empty; give --thinking none for models that do not think")
        return ThinkingFormat(start, end)
    if name == "none":
        return None
    try:
        check_thinking(name)
    except ValueError as error:
        raise UserError(f"--thinking: {error}") from error
    return name


def template_options_of(text: str | None) -> dict[str, Any] | None:
    """Options of chat templates from JSON.

    Raises:
        UserError: No JSON object.
    """
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"--chat-template-kwargs is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"--chat-template-kwargs must be a JSON object, got {text}")
    return found


def check_output_path(option: str, path: Path | None) -> None:
    """Finds out before the run, not after it, that a file cannot be written.

    Args:
        option: That the path was given by.
        path: Path of the file, or None.

    Raises:
        UserError: It cannot.
    """
    if path is None:
        return
    try:
        check_writable(path)
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written: {error.strerror}") from error


def load_pair(small: Path, large: Path, config: RouterConfig, **options: Any) -> RoutedModel:
    """The pair in two local directories.

    Args:
        small: Directory of the small model.
        large: Directory of the large model.
        config: As ``RoutedModel`` takes it.
        **options: Options of ``RoutedModel.from_pretrained``.

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
        context: Context of the command, which knows the options that were typed.
        path: Path of the file, or None.

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
