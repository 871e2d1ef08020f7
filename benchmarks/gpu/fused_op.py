"""The fused decode operation: one routed step of B sequences, against what a user would write."""

from __future__ import annotations

from typing import Any

import torch
from clock import Clock

import glimprouter as gr

BATCHES = (1, 4, 16, 64, 256)
DTYPES = ("bfloat16", "float32")
COMPILED = (1, 64)  # batches at which torch.compile is measured: it takes seconds a shape
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.6, "top_p": 1.0},
    "top-p": {"temperature": 0.6, "top_p": 0.95},
}
# Microseconds of a replay, warm, that the project set itself for greedy rows of bfloat16.
GOALS = {1: 4.2, 64: 7.5, 256: 23.0}
# Rows whose nucleus is long, by name: standard deviation of the logits, options. Of the 151,936
# elements about 900 are in the nucleus of the first, and 110,000 in that of the second.
FLAT: dict[str, tuple[float, dict[str, Any]]] = {
    "N(0, 2.5)": (2.5, {"temperature": 0.6, "top_p": 0.95}),
    "N(0, 1)": (1.0, {"temperature": 1.0, "top_p": 0.95}),
}
# Microseconds of a replay, warm, for any row: up to a batch of so many.
NUCLEUS_GOALS = {64: 40.0, 256: 150.0}


def make_boundary(vocabulary: int) -> gr.StepBoundary:
    """A vocabulary of words with a few delimiters in it."""
    words: list[bytes | None] = [b"w%d" % index for index in range(vocabulary)]
    words[10], words[11] = b".\n\n", b"\n\n"
    return gr.StepBoundary(words, ["\n\n"], [], [], [], [])


def torch_step(
    logits: torch.Tensor, mode: dict[str, Any], delimiters: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Entropy, token, boundary and route in torch operations.

    Args:
        logits: ``[B, V]``.
        mode: Sampling options.
        delimiters: bool ``[V]``.
    """
    values = logits.float()
    log_probs = torch.log_softmax(values, dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    if mode["temperature"] == 0.0:
        token = values.argmax(dim=-1)
    else:
        probs = torch.softmax(values / mode["temperature"], dim=-1)
        if mode.get("top_p", 1.0) < 1.0:
            ordered, order = probs.sort(dim=-1, descending=True)
            kept = ordered.cumsum(dim=-1) - ordered < mode["top_p"]
            ordered = torch.where(kept, ordered, torch.zeros_like(ordered))
            place = _draw(ordered / ordered.sum(dim=-1, keepdim=True))
            token = order.gather(-1, place[:, None])[:, 0]
        else:
            token = _draw(probs)
    return entropy, token, delimiters[token], entropy > 1.0


def _draw(probs: torch.Tensor) -> torch.Tensor:
    """Exponential race: graphs and compilers take it, unlike torch.multinomial."""
    return (probs / torch.empty_like(probs).exponential_()).argmax(dim=-1)


class RoutedStep:
    """A router whose B sequences never end, so that every call does the same work."""

    def __init__(self, logits: torch.Tensor, mode: dict[str, Any], boundary: gr.StepBoundary):
        batch = logits.shape[0]
        device = str(logits.device) if logits.is_cuda else "cpu"
        config = gr.RouterConfig(
            route="small", repetition_guard=False, max_think_tokens=1 << 16, **mode
        )
        self.router = gr.StepRouter(boundary, config, max_sequences=batch, device=device)
        rows = [self.router.open(substream=index) for index in range(batch)]
        self.rows: Any = rows
        if logits.is_cuda:
            self.rows = torch.tensor(rows, dtype=torch.int32, device=logits.device)
        self.out = self.router.outputs(batch, gr.OutputField.NONE)
        self.logits = logits

    def __call__(self) -> None:
        """One step of all sequences; on a device nothing waits."""
        if self.logits.is_cuda:
            self.router.launch("small", self.logits, self.rows, self.out)
        else:
            self.router.step("small", self.logits, self.rows, self.out)


def _optional_flashinfer(logits: torch.Tensor, mode: dict[str, Any]) -> Any:
    try:
        from flashinfer.sampling import top_p_sampling_from_probs
    except ImportError:
        return None
    if mode.get("top_p", 1.0) == 1.0:
        return None

    def call() -> torch.Tensor:
        probs = torch.softmax(logits.float() / mode["temperature"], dim=-1)
        return top_p_sampling_from_probs(probs, mode["top_p"])

    return call


def measure_one(
    clock: Clock, logits: torch.Tensor, name: str, boundary: gr.StepBoundary, bandwidth: float
) -> dict[str, Any]:
    """One line of the table: times in microseconds, ratios to torch, fraction of the bandwidth."""
    mode = MODES[name]
    delimiters = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    delimiters[10:12] = True
    step = RoutedStep(logits, mode, boundary)
    bytes_read = logits.numel() * logits.element_size()
    times: dict[str, float | None] = {
        "replay_warm_us": clock.replay(step),
        "events_warm_us": clock.events(step),
        "events_cold_us": clock.events(step, cold=True),
        "torch_eager_us": clock.events(lambda: torch_step(logits, mode, delimiters)),
        "torch_compile_us": None,
        "flashinfer_us": None,
    }
    if clock.is_cuda and logits.shape[0] in COMPILED:
        torch.compiler.reset()  # beyond a few shapes of one function it would run eagerly
        compiled = torch.compile(torch_step, dynamic=False)
        times["torch_compile_us"] = clock.events(lambda: compiled(logits, mode, delimiters))
    other = _optional_flashinfer(logits, mode)
    if other is not None:
        times["flashinfer_us"] = clock.events(other)
    ours = times["replay_warm_us"] or 0.0
    eager, compile_us = times["torch_eager_us"], times["torch_compile_us"]
    return {
        "batch": logits.shape[0],
        "dtype": str(logits.dtype).removeprefix("torch."),
        "mode": name,
        **times,
        "gigabytes_per_second_warm": bytes_read / ours / 1e3,
        "fraction_of_copy_cold": bytes_read / (1e-6 * (times["events_cold_us"] or 1)) / bandwidth,
        "times_torch_eager": None if eager is None else eager / ours,
        "times_torch_compile": None if compile_us is None else compile_us / ours,
        "goal_us": GOALS.get(logits.shape[0]) if name == "greedy" else None,
    }


def measure_nucleus(
    clock: Clock, normal: torch.Tensor, name: str, boundary: gr.StepBoundary
) -> dict[str, Any]:
    """A routed step of rows in bfloat16 with a long nucleus, beside a sort of the same rows.

    Args:
        clock: Of the device.
        normal: Standard normal numbers ``[B, V]``.
        name: In ``FLAT``.
        boundary: Of the vocabulary.
    """
    deviation, mode = FLAT[name]
    logits = (deviation * normal).bfloat16()
    batch = logits.shape[0]
    ours = clock.replay(RoutedStep(logits, mode, boundary))
    sort = clock.events(lambda: logits.sort(dim=-1, descending=True))
    goal = next((goal for most, goal in NUCLEUS_GOALS.items() if batch <= most), None)
    return {
        "batch": batch,
        "dtype": "bfloat16",
        "logits": name,
        **mode,
        "replay_warm_us": ours,
        "torch_sort_us": sort,
        "goal_us": goal,
        "within_goal": None if goal is None else ours <= goal,
        "faster_than_sort": ours < sort,
    }


def run(clock: Clock, vocabulary: int, batches: tuple[int, ...] = BATCHES) -> dict[str, Any]:
    """Every batch, type and mode; and the rows with long nuclei.

    Args:
        clock: Of the device.
        vocabulary: Of a row of logits.
        batches: Sizes.
    """
    bandwidth = clock.copy_bandwidth()
    boundary = make_boundary(vocabulary)
    generator = torch.Generator(device=clock.device).manual_seed(0)
    rows = []
    nuclei = []
    for batch in batches:
        normal = torch.randn((batch, vocabulary), generator=generator, device=clock.device)
        for dtype in DTYPES:
            logits = (2.5 * normal).to(getattr(torch, dtype))
            for name in MODES:
                rows.append(measure_one(clock, logits, name, boundary, bandwidth))
        nuclei += [measure_nucleus(clock, normal, name, boundary) for name in FLAT]
    return {
        "copy_bytes_per_second": bandwidth,
        "vocabulary": vocabulary,
        "rows": rows,
        "nuclei": nuclei,
    }
