"""``glimprouter calibrate``: the threshold of a pair for a wanted share of large steps."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from glimprouter import calibration
from glimprouter.calibration.pairs import AnyPair
from glimprouter.cli import options, render
from glimprouter.cli.engines import is_behind_urls
from glimprouter.cli.errors import clean_exit
from glimprouter.cli.options import DEFAULTS
from glimprouter.cli.pairs import engines_of, pair_of, require_directories
from glimprouter.cli.prompts import Prompt, read_prompts
from glimprouter.cli.stages import stages
from glimprouter.config import RouterConfig


def _run(
    bars: Console, model: AnyPair, prompts: list[Prompt], large_share: float, seed: int
) -> calibration.Calibration:
    """Calibrates with progress; a warning becomes one line below it."""
    with warnings.catch_warnings(record=True) as caught, stages(bars, "prompts") as progress:
        warnings.simplefilter("always", RuntimeWarning)
        result = calibration.calibrate(model, prompts, large_share, seed=seed, progress=progress)
    for warning in caught:
        typer.echo(f"warning: {render.neutralise(str(warning.message))}", err=True)
    return result


def _print_result(console: Console, result: calibration.Calibration, out: Path) -> None:
    entropy = "full entropy"
    if result.entropy_top_k is not None:
        entropy = f"entropy of the {result.entropy_top_k} most likely"
    outside = not result.low <= result.large_share <= result.high
    lines = [
        f"threshold: {result.threshold:.6g} nats (H {result.comparison} tau, {entropy})",
        f"wanted:    {100 * result.large_share:.1f} % of the glimpsed steps by the large model",
        f"measured:  {100 * result.measured_share:.1f} % (95 %: {100 * result.low:.1f} .. "
        f"{100 * result.high:.1f}) of {result.verification_steps} steps in "
        f"{result.verification_prompts} other prompts",
        f"chosen on: {result.calibration_steps} steps in {result.calibration_prompts} prompts, "
        f"{result.rounds} routed {'round' if result.rounds == 1 else 'rounds'}",
        *(["The wanted share lies outside the interval; more prompts help."] if outside else []),
        f"calibration: {out}",
    ]
    for line in lines:
        render.write(console, f"{line}\n")


def calibrate(
    context: typer.Context,
    file: options.PromptFile,
    out: Annotated[Path, typer.Option("--out", help="Write the calibration here, as JSON.")],
    small: options.SmallOrUrl = None,
    large: options.LargeOrUrl = None,
    small_url: options.SmallUrl = None,
    large_url: options.LargeUrl = None,
    small_tokenizer: options.SmallTokenizer = None,
    large_tokenizer: options.LargeTokenizer = None,
    engine_api_key: options.EngineApiKey = None,
    engine_timeout: options.EngineTimeout = 120.0,
    engine_patience: options.EnginePatience = 60.0,
    large_share: Annotated[
        float, typer.Option(help="Wanted share of glimpsed steps by the large model, in (0, 1).")
    ] = 0.25,
    comparison: options.ComparisonName = DEFAULTS.comparison,
    entropy_top_k: options.EntropyTopK = DEFAULTS.entropy_top_k,
    temperature: options.Temperature = DEFAULTS.temperature,
    top_p: options.TopP = DEFAULTS.top_p,
    top_k: options.TopK = DEFAULTS.top_k,
    min_p: options.MinP = DEFAULTS.min_p,
    max_step_tokens: options.MaxStep = DEFAULTS.max_step_tokens,
    max_think_tokens: options.MaxThink = DEFAULTS.max_think_tokens,
    max_answer_tokens: options.MaxAnswer = DEFAULTS.max_answer_tokens,
    first_steps_large: options.FirstLarge = DEFAULTS.first_steps_large,
    large_tokens: options.LargeTokens = DEFAULTS.large_tokens,
    repetition_guard: options.Guard = DEFAULTS.repetition_guard,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and the sampling.")] = 0,
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
    """Find the threshold that sends a wanted share of the steps to the large model.

    The pair is in two directories, and runs here, or behind the URLs of two servers of vLLM.
    """
    given = locals()
    names = RouterConfig.__dataclass_fields__.keys() & given.keys()
    with clean_exit():
        config = DEFAULTS.replace(**{name: given[name] for name in names})
        calibration.check_large_share(large_share)
        options.check_output_path("--out", out)
        urls = is_behind_urls(context)
        if not urls:
            require_directories(given)
        prompts = read_prompts(file)
        calibration.distinct_prompts(prompts)  # before a model is loaded
        bars = render.make_console(plain=plain, no_color=no_color, stderr=True)
        if urls:
            with engines_of(config, given) as engines:
                result = _run(bars, engines, prompts, large_share, seed)
        else:
            # Without drafts, passes do not follow the clock: a threshold can be found again.
            result = _run(bars, pair_of(config, given, drafts=0), prompts, large_share, seed)
        result.to_json(out)
        _print_result(render.make_console(plain=plain, no_color=no_color), result, out)
