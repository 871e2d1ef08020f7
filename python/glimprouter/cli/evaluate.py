"""``glimprouter evaluate``: whether routing pays for a pair on a task, with error bars."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from glimprouter import tasks
from glimprouter.calibration.pairs import AnyPair
from glimprouter.cli import options, render
from glimprouter.cli.engines import is_behind_urls
from glimprouter.cli.errors import UserError, clean_exit
from glimprouter.cli.options import DEFAULTS
from glimprouter.cli.pairs import engines_of, pair_of, require_directories
from glimprouter.cli.stages import stages
from glimprouter.config import RouterConfig
from glimprouter.evaluation.on_engines import ENGINE_POLICIES, check_plan
from glimprouter.evaluation.plan import DEFAULT_POLICIES, DEFAULT_SHARES, Plan
from glimprouter.evaluation.prices import Prices, prices_from_gpu_figures
from glimprouter.evaluation.probes import rows_needed

if TYPE_CHECKING:
    from glimprouter.tasks import Task

LEAST_ROWS = 64

evaluate = typer.Typer(
    name="evaluate",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Whether routing pays for a pair: run policies over a task, then report.",
)

_PLAN = Plan()
Directories = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Folders of `evaluate run --out`.")
]


def numbers_of(option: str, text: str) -> tuple[float, ...]:
    """Numbers separated by commas; none for an empty text.

    Raises:
        UserError: Something else.
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"{option} takes numbers with commas between them, got {text!r}") from None


def task_of(name: str, file: Path | None, *, run_code: bool) -> Task:
    """A task by its name, or a class of the user's own in ``FILE.py:CLASS``.

    Raises:
        UserError: No such file or class, or no task.
        ValueError: An unknown name, or a file that does not belong to it.
        OSError: The file cannot be read.
    """
    found = re.fullmatch(r"(.+\.py):(\w+)", name)
    if found is None:
        return tasks.task_of(name, file, run_code=run_code)
    if file is not None:
        raise UserError("--task-file belongs to the tasks that have a name")
    path = Path(found[1])
    if not path.is_file():
        raise UserError(f"--task {name}: there is no file {path}")
    spec = importlib.util.spec_from_file_location("glimprouter_own_task", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses of the file look it up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file does
        raise UserError(f"--task {name}: {type(error).__name__} in the file: {error}") from error
    kind = getattr(module, found[2], None)
    if not (isinstance(kind, type) and issubclass(kind, tasks.Task)):
        raise UserError(f"--task {name}: {path} has no class {found[2]} of glimprouter.tasks.Task")
    task: Task = kind()
    return task


@evaluate.command()
def run(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(tasks.task_names())}, or FILE.py:CLASS of your own.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the records; the same call goes on there.")],
    small: options.SmallOrUrl = None,
    large: options.LargeOrUrl = None,
    small_url: options.SmallUrl = None,
    large_url: options.LargeUrl = None,
    small_tokenizer: options.SmallTokenizer = None,
    large_tokenizer: options.LargeTokenizer = None,
    engine_api_key: options.EngineApiKey = None,
    engine_timeout: options.EngineTimeout = 120.0,
    engine_patience: options.EnginePatience = 60.0,
    problems: Annotated[int, typer.Option(help="Report problems.")] = _PLAN.problems,
    development_problems: Annotated[
        int, typer.Option(help="Other problems, to choose thresholds on.")
    ] = _PLAN.development_problems,
    task_file: Annotated[
        Path | None, typer.Option(help="Data set of the tasks that read one.")
    ] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run programs that the models wrote, to check them.")
    ] = False,
    task_seed: Annotated[int, typer.Option(min=0, help="Which problems.")] = 0,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A policy, NAME or NAME:parameter=number,...; may be given often.",
            show_default=", ".join(DEFAULT_POLICIES),
        ),
    ] = None,
    shares: Annotated[
        str, typer.Option(help="Wanted shares of large steps, each in (0, 1).")
    ] = ",".join(map(str, DEFAULT_SHARES)),
    seeds: Annotated[int, typer.Option(help="Runs of everything.")] = _PLAN.seeds,
    batch: Annotated[int, typer.Option(help="Problems in flight.")] = _PLAN.batch,
    timing_batches: Annotated[str, typer.Option(help="More batch sizes, for seconds only.")] = "",
    timing_problems: Annotated[
        int, typer.Option(help="Problems that are timed there.")
    ] = _PLAN.timing_problems,
    rounds: Annotated[int, typer.Option(help="Routed runs for a threshold.")] = _PLAN.rounds,
    probe_problems: Annotated[
        int, typer.Option(help="Problems whose chains both models continue from some steps.")
    ] = _PLAN.probe_problems,
    probe_steps: Annotated[int, typer.Option(help="Such steps of a chain.")] = _PLAN.probe_steps,
    probe_draws: Annotated[int, typer.Option(help="Continuations each.")] = _PLAN.probe_draws,
    entropy_top_k: options.EntropyTopK = DEFAULTS.entropy_top_k,
    temperature: options.Temperature = DEFAULTS.temperature,
    top_p: options.TopP = DEFAULTS.top_p,
    top_k: options.TopK = DEFAULTS.top_k,
    min_p: options.MinP = DEFAULTS.min_p,
    max_step_tokens: options.MaxStep = DEFAULTS.max_step_tokens,
    max_think_tokens: options.MaxThink = DEFAULTS.max_think_tokens,
    max_answer_tokens: options.MaxAnswer = DEFAULTS.max_answer_tokens,
    answer_model: options.AnswerModel = DEFAULTS.answer_model,
    repetition_guard: options.Guard = DEFAULTS.repetition_guard,
    drafts: options.Drafts = "0",
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    execution: options.Execution = "auto",
    kv_memory: options.KvMemory = None,
    thinking: options.Thinking = "auto",
    think_start: options.ThinkStart = None,
    think_end: options.ThinkEnd = None,
    threads: options.Threads = None,
    trust_remote_code: options.TrustRemoteCode = False,
    no_color: options.NoColor = False,
    plain: options.Plain = False,
) -> None:
    """Solve a task's problems under each policy, and record every step.

    The pair is in two directories, and runs here, or behind the URLs of two servers of vLLM; those
    follow the policies random and entropy only, and are not probed.
    """
    given = locals()
    config_names = RouterConfig.__dataclass_fields__.keys() & given.keys()
    with clean_exit():
        urls = is_behind_urls(context)
        probed = context.get_parameter_source("probe_problems")
        if urls and probed is not None and probed.name == "DEFAULT":
            given["probe_problems"] = 0
        plan = Plan(
            policies=tuple(policy or (ENGINE_POLICIES if urls else DEFAULT_POLICIES)),
            shares=numbers_of("--shares", shares),
            timing_batches=_sizes(timing_batches),
            **{name: given[name] for name in Plan.__dataclass_fields__.keys() & _WHOLE},
        )
        config = DEFAULTS.replace(**{name: given[name] for name in config_names})
        own_task = task_of(task, task_file, run_code=run_code)
        rows = max(LEAST_ROWS, rows_needed(plan), plan.rows)
        bars = render.make_console(plain=plain, no_color=no_color, stderr=True)
        if urls:
            check_plan(plan)
            with engines_of(config, given, max_sequences=rows) as engines:
                path = _evaluated(bars, engines, own_task, out, plan)
        else:
            require_directories(given)
            drafted = options.drafts_of(drafts)
            model = pair_of(config, given, drafts=drafted, max_sequences=rows)
            path = _evaluated(bars, model, own_task, out, plan)
        console = render.make_console(plain=plain, no_color=no_color)
        render.write(console, f"records: {path}\n")


def _evaluated(bars: Console, model: AnyPair, task: Task, out: Path, plan: Plan) -> Path:
    from glimprouter import evaluation

    with stages(bars, "problems") as progress:
        return evaluation.evaluate(model, task, out, plan, progress=progress)


_WHOLE = {
    "problems",
    "development_problems",
    "task_seed",
    "seeds",
    "batch",
    "timing_problems",
    "rounds",
    "probe_problems",
    "probe_steps",
    "probe_draws",
}


def _sizes(text: str) -> tuple[int, ...]:
    sizes = numbers_of("--timing-batches", text)
    if any(not size.is_integer() for size in sizes):
        raise UserError(f"--timing-batches takes whole numbers, got {text!r}")
    return tuple(map(int, sizes))


@evaluate.command()
def report(
    directories: Directories,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report.", show_default="the first DIR")
    ] = None,
    cost_small: Annotated[
        float | None, typer.Option(help="Price of a pass of the small model, in any unit.")
    ] = None,
    cost_large: Annotated[float | None, typer.Option(help="Of the large model.")] = None,
    cost_per: Annotated[str, typer.Option(help="What the prices are for: pass or token.")] = "pass",
    gpu_figures: Annotated[
        Path | None,
        typer.Option(help="Prices from a file of benchmarks/results: measured milliseconds."),
    ] = None,
) -> None:
    """Write report.html and report.md from the records of one or more runs."""
    with clean_exit():
        prices = _prices(cost_small, cost_large, cost_per, gpu_figures)
        for directory in directories:
            if not directory.exists():
                raise UserError(f"there is no folder {directory}; give those of `evaluate run`")
        try:
            from glimprouter.evaluation.report import write_report

            paths = write_report(directories, out, prices=prices)
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename} does not exist; give a folder of `evaluate run`"
            ) from error
        for path in paths:
            typer.echo(f"report: {path}")


def _prices(
    small: float | None, large: float | None, per: str, figures: Path | None
) -> Prices | None:
    if (small is None) != (large is None):
        raise UserError("--cost-small and --cost-large go together")
    if figures is not None:
        if small is not None:
            raise UserError("--gpu-figures and --cost-small exclude each other")
        return prices_from_gpu_figures(figures)
    if small is None or large is None:
        return None
    return Prices(small, large, per, source="given on the command line")  # type: ignore[arg-type]
