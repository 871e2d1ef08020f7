"""``glimprouter demo``: the embedded trained pair at work, and what routing brings it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from glimprouter.cli import intervals, options, render
from glimprouter.cli.errors import clean_exit
from glimprouter.cli.measure import Contender, Latency, Outcome, make_contenders, solve, time_alone
from glimprouter.cli.torch_setup import (
    load_causal_lm,
    quiet_transformers,
    use_threads,
)
from glimprouter.demo_pair import RECOMMENDED_THRESHOLD, large_path, small_path
from glimprouter.demo_pair.task import Problem, held_out_problems, is_correct

if TYPE_CHECKING:
    from glimprouter.cli.intervals import Interval

QUICK_PROBLEMS, QUICK_LATENCY_PROBLEMS, QUICK_SHOWN = 24, 2, 1

Advance = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a run does: problems shown, solved for accuracy, and timed alone."""

    shown: int
    problems: int
    latency_problems: int


@contextmanager
def _progress(console: Console, label: str, total: int) -> Iterator[Advance]:
    """A bar on a terminal, one line of text elsewhere; yields what advances it by one."""
    start = time.perf_counter()
    if console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = ("{task.description:28}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda: bar.advance(task)
    else:
        yield lambda: None
    console.print(f"{label}: {total} in {time.perf_counter() - start:.1f} s")


def _show_problem(console: Console, routed: Contender, problem: Problem) -> None:
    """Solves one problem, printing each step as soon as it is written."""
    console.print(Text(f"\n{problem.prompt}", "bold"))
    console.print(render.step_header())
    for event in routed.model.stream([problem.prompt]):
        if event.kind == "error":
            raise RuntimeError(str(event.message))
        if event.kind == "step" and event.step is not None:
            console.print(render.step_line(event.step), soft_wrap=True)
        if event.kind == "done" and event.result is not None:
            answer = event.result.answer
            right = is_correct(problem, answer)
            verdict = "right" if right else f"wrong, it is {problem.answer}"
            writer = routed.model.config.answer_model
            line = Text("      answer  ")
            line.append(render.one_line(answer), render.WRITER_STYLE[writer])
            line.append(f"  ({verdict})", "green" if right else "red")
            console.print(line, soft_wrap=True)


def _percent(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} .. {100 * interval.high:.1f}"


def _summary_row(
    name: str, outcomes: Sequence[Outcome], latencies: Sequence[Latency]
) -> tuple[str, ...]:
    accuracy = intervals.proportion(sum(o.correct for o in outcomes), len(outcomes))
    timed_tokens = sum(latency.tokens for latency in latencies)
    milliseconds = 1e3 * sum(latency.seconds for latency in latencies) / max(timed_tokens, 1)
    steps = sum(o.steps for o in outcomes)
    tokens = sum(o.tokens for o in outcomes)
    return (
        name,
        f"{100 * accuracy.estimate:.1f} %",
        _percent(accuracy),
        f"{milliseconds:.2f}",
        f"{100 * sum(o.large_steps for o in outcomes) / max(steps, 1):.1f} %",
        f"{100 * sum(o.large_tokens for o in outcomes) / max(tokens, 1):.1f} %",
        f"{tokens / len(outcomes):.0f}",
    )


def _difference_line(name: str, routed: Sequence[Outcome], other: Sequence[Outcome]) -> str:
    pair = [o.correct for o in routed], [o.correct for o in other]
    difference = intervals.paired_difference(*pair)
    remark = "; no difference is shown" if difference.low <= 0 <= difference.high else ""
    return (
        f"Accuracy, routed minus {name}: {100 * difference.estimate:+.1f} points "
        f"(paired, 95 %: {100 * difference.low:+.1f} .. {100 * difference.high:+.1f}{remark})."
    )


def _ratio_line(name: str, routed: Sequence[Latency], other: Sequence[Latency]) -> str:
    ratio = intervals.paired_ratio(
        [t.milliseconds_per_token for t in routed], [t.milliseconds_per_token for t in other]
    )
    return (
        f"Time a token at batch 1, routed over {name}: {ratio.estimate:.2f} "
        f"(paired, 95 %: {ratio.low:.2f} .. {ratio.high:.2f})."
    )


def _print_summary(
    console: Console,
    outcomes: dict[str, list[Outcome]],
    latencies: dict[str, list[Latency]],
) -> None:
    solved, timed = len(outcomes["routed"]), len(latencies["routed"])
    columns = (
        "",
        "accuracy",
        "95 %",
        "ms a\ntoken",
        "large\nsteps",
        "large\ntokens",
        "tokens a\ntask",
    )
    rows = [_summary_row(name, outcomes[name], latencies[name]) for name in outcomes]
    title = f"{solved} held-out problems; time at batch 1 over {timed} of them"
    console.print(Text(f"\n{title}", "bold"), soft_wrap=True)
    for line in (*render.table_lines(columns, rows), Text()):
        console.print(line, soft_wrap=True)
    others = [name for name in outcomes if name != "routed"]
    for name in others:
        console.print(_difference_line(name, outcomes["routed"], outcomes[name]), soft_wrap=True)
    for name in others:
        console.print(_ratio_line(name, latencies["routed"], latencies[name]), soft_wrap=True)
    if solved < 200 or timed < 10:
        console.print("(A short run: the figures above mean little.)")


def run_demo(
    console: Console,
    sizes: Sizes,
    threshold: float,
    seed: int,
    threads: int,
    **pair_options: Any,
) -> None:
    """Shows some problems, then measures all three ways and prints the table.

    Args:
        console: Where to print.
        sizes: How many problems; counts >= 1, ``shown`` >= 0.
        threshold: tau in nats.
        seed: Chooses the held-out problems.
        threads: Threads of torch.
        **pair_options: Options of ``RoutedModel`` (device, execution, drafts, kv_memory_bytes),
            and the dtype of the models.

    Raises:
        ValueError: The threshold is out of range, or an option cannot be had.
    """
    start = time.perf_counter()
    quiet_transformers()
    dtype = pair_options.pop("dtype", "float32")
    device = pair_options.get("device")
    small, tokenizer = load_causal_lm("the embedded small model", small_path(), dtype, device)
    large, _ = load_causal_lm("the embedded large model", large_path(), dtype, device)
    contenders = make_contenders(small, large, tokenizer, threshold, **pair_options)
    sizes_text = " and ".join(f"{m.num_parameters():,}" for m in (small, large))
    console.print(
        f"Embedded pair: {sizes_text} parameters, {dtype}, greedy; tau = {threshold:g} nats; "
        f"torch threads: {threads}",
        soft_wrap=True,
    )
    problems = held_out_problems(max(sizes.problems, sizes.shown, sizes.latency_problems), seed)
    use_threads(threads)
    contenders[0].model.generate([problems[0].prompt])  # the first call allocates and picks kernels
    for problem in problems[: sizes.shown]:
        _show_problem(console, contenders[0], problem)
    console.print()
    timed = problems[: sizes.latency_problems]
    with _progress(console, "one at a time, all ways", len(timed) * len(contenders)) as advance:
        latencies = time_alone(contenders, timed, advance)
    outcomes = {}
    for contender in contenders:
        with _progress(console, f"batches, {contender.name}", sizes.problems) as advance:
            outcomes[contender.name] = solve(contender, problems[: sizes.problems], advance)
    _print_summary(console, outcomes, latencies)
    console.print(
        f"Everything above was measured in this run ({time.perf_counter() - start:.0f} s)."
    )


def demo(
    problems: Annotated[
        int, typer.Option(min=1, help="Held-out problems solved in batches, for the accuracies.")
    ] = 200,
    latency_problems: Annotated[
        int, typer.Option(min=1, help="Problems solved one at a time, for the time a token.")
    ] = 12,
    show: Annotated[int, typer.Option(min=0, help="Problems shown step by step.")] = 3,
    threshold: Annotated[
        float,
        typer.Option(help="tau in nats: above it the large model writes the step."),
    ] = RECOMMENDED_THRESHOLD,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the problems.")] = 2026,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of torch; models this small are fastest on one.")
    ] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few problems only; the figures then mean little.")
    ] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain text, as where the output is no terminal.")
    ] = False,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    execution: options.Execution = "auto",
    drafts: options.Drafts = "auto",
    kv_memory: options.KvMemory = None,
    svg: Annotated[
        Path | None, typer.Option(help="Also write what is printed to this file, as a picture.")
    ] = None,
) -> None:
    """Solve problems with the embedded trained pair: routed, small alone and large alone."""
    with clean_exit():
        sizes = Sizes(show, problems, latency_problems)
        if quick:
            sizes = Sizes(QUICK_SHOWN, QUICK_PROBLEMS, QUICK_LATENCY_PROBLEMS)
        console = render.make_console(plain=plain, no_color=no_color, record=svg is not None)
        run_demo(
            console,
            sizes,
            threshold,
            seed,
            threads,
            device=device,
            dtype=dtype,
            execution=execution,
            drafts=options.drafts_of(drafts),
            kv_memory_bytes=options.bytes_of(kv_memory),
        )
        if svg is not None:
            render.save_svg(console, svg, "glimprouter demo")
