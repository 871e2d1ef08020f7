"""What a call of `StepRouter.step` costs beyond its kernel, from Python with torch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import glimprouter as gr
from glimprouter import _C
from glimprouter.bench.harness import BenchmarkRow, Section, Settings, make_logits, measure

if TYPE_CHECKING:
    import torch

VOCABULARY = 302
STEPS = 2000
MOST_MICROSECONDS = 1.0


def _decode(
    router: gr.StepRouter, row: int, model: str, logits: torch.Tensor, rows: torch.Tensor
) -> None:
    """Commits STEPS tokens to one open sequence, then takes them back."""
    out = router.outputs(1)
    step = router.step
    for _ in range(STEPS):
        step(model, logits, rows, out)
    router.rewind(row, STEPS)


def run(settings: Settings) -> list[Section]:
    """Measures a small-model decode step, B=1, V=302, greedy, against the bare kernel."""
    import torch

    token_bytes = [b"x%d" % token for token in range(VOCABULARY - 1)] + [b"\n\n"]
    boundary = gr.StepBoundary(token_bytes)
    config = gr.RouterConfig(
        temperature=0.0, max_step_tokens=2 * STEPS, max_think_tokens=2 * STEPS, route="small"
    )
    router = gr.StepRouter(boundary, config, max_sequences=1)
    row = router.open()
    logits = make_logits("normal", "float32", 1, VOCABULARY)
    logits[0, -1] = -20.0  # the delimiter: the step goes on
    rows = torch.tensor([row])
    # Both contenders evaluate the row STEPS times in one call.
    timings = measure(
        {
            "step": lambda: _decode(router, row, "small", logits, rows),
            "kernel": lambda: _C.benchmark_row(logits, STEPS),
        },
        settings,
    )
    call = timings.microseconds("step") / STEPS
    kernel = timings.microseconds("kernel") / STEPS
    beyond = timings.microseconds_beyond("step", "kernel") / STEPS
    return [
        Section(
            f"StepRouter.step from Python with torch tensors, B=1, V={VOCABULARY}",
            [
                BenchmarkRow("step", call),
                BenchmarkRow("kernel alone, in C++", kernel),
                BenchmarkRow(
                    "step beyond its kernel",
                    beyond,
                    goal=f"< {MOST_MICROSECONDS:g} us",
                    met=beyond < MOST_MICROSECONDS,
                ),
            ],
        )
    ]
