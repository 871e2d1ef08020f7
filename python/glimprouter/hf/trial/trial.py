"""A trial of passes that keep what they have computed, against full passes without a cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from glimprouter.hf.pair.lost import raise_if_lost
from glimprouter.hf.trial.selections import Selections, of_all, recorded, repeated
from glimprouter.hf.trial.windows import NARROW, narrowed, widest_window

# Computes the next tokens of some rows, each behind what it has; logits of the last, [B, V].
Passes: TypeAlias = Callable[[Sequence[int], Sequence[Sequence[int]]], torch.Tensor]
_Schedule: TypeAlias = tuple[tuple[tuple[int, int], ...], ...]

# (row, new tokens) of each pass. Two rows of different length; a prompt, decoding, what another
# model wrote meanwhile, decoding behind that; each with the other row and without. The longer one
# leaves a window of NARROW tokens behind in the prompt, the shorter one later.
_SCHEDULE: _Schedule = (
    ((0, NARROW + 1), (1, NARROW - 2)),
    ((0, 1), (1, 1)),
    ((0, NARROW - 1), (1, 4)),
    ((0, 1), (1, 1)),
    ((1, 2),),
)
_LONG_TAIL = (1, 7, 1)  # passes behind the long text's first
# Root mean square of the difference over the spread of the logits. Rounding in the narrow types is
# some hundredths; an attention that is not the model's own gives about 1.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.1}
# Logits of a random model hardly depend on what came before: there a tolerance is as much less,
# but never below what rounding takes.
_ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 0.03, torch.float16: 0.01}
# What a pass differs by is up to so much of what rounding alone does to the model's own pass, which
# is seen by rounding its embeddings anew, twice: half of it mostly, rarely more than twice.
_NOISES = 3.0
_DRAWS = 2
# Where rounding may do more than this to what came before, nothing can be told from the logits (a
# wrong pass differs by about 1); another text may tell.
_TELLING = 0.5
_TEXTS = 8
# Multiplications and additions that a long text may take: a second or two.
_AFFORDABLE = {"cpu": 2e12, "cuda": 1e15}


@dataclass(frozen=True)
class _Cut:
    """What is expected behind one pass of one row.

    Attributes:
        logits: Of the model's own full pass, ``[V]`` in float32.
        allowed: Difference that is taken for rounding, over the spread of the logits.
        telling: Whether a wrong pass would differ by more.
    """

    logits: torch.Tensor
    allowed: float
    telling: bool = True


class Trial:
    """Texts, the passes over them, and what the model itself says of them.

    Whatever may be wrong must show: windows and chunks are narrower than the texts (and where it is
    affordable, a text is longer than the widest as it is); two rows of different length stand side
    by side; every pass depends on those before it.
    """

    def __init__(self, model: Any, attention: str | None = None) -> None:
        """Nothing is computed yet.

        Args:
            model: A causal language model of transformers.
            attention: What the full passes attend with, where the model's present attention needs
                a cache; None for that one.
        """
        self._model = model
        self._attention = attention
        self._parameters = inspect.signature(model.forward).parameters
        # Quantized layers may round what comes to them to eight bits, by what a whole pass holds.
        quantized = getattr(model, "is_quantized", False) and model.dtype == torch.float32
        self._dtype = torch.float16 if quantized else model.dtype  # whose rounding is expected
        self._narrow = self._dtype.itemsize < 4
        self._expected: dict[tuple[_Schedule, int], list[list[_Cut]]] = {}
        self._chosen: dict[tuple[_Schedule, int], Selections] = {}

    @torch.inference_mode()
    def why_not(self, begin: Callable[[Sequence[int]], Passes]) -> str | None:
        """Why passes are not the model's own, or None when they are.

        Args:
            begin: Begins with empty rows 0, 1, ...; it is told how many tokens each will have.
        """
        try:
            for schedule, windows in self._schedules():
                with windows:
                    error = self._why_not(begin, schedule)
                if error is not None:
                    return error
        except Exception as failure:  # whatever a model's code does with what it does not know
            raise_if_lost(failure, str(self._model.device))
            return _first_line(failure)
        return None

    @torch.inference_mode()
    def why_not_itself(self, begin: Callable[[Sequence[int]], Passes]) -> str | None:
        """As :meth:`why_not`, for a model whose passes with a cache are not those without one.

        Some code of transformers is so. Then the passes of ``generate()`` say what is right: a
        sequence alone, its prompt at once and then token by token. What is tried is that a sequence
        beside another is as it is alone, and that what came before matters.
        """
        try:
            with narrowed(self._model):
                texts = self._texts(_SCHEDULE)
                alone = [self._alone(begin, text, row) for row, text in enumerate(texts)]
                other = self._alone(begin, [*reversed(texts[0][:NARROW]), *texts[0][NARROW:]], 0)
                together = self._run(begin([len(text) for text in texts]), texts)
        except Exception as failure:  # as above
            raise_if_lost(failure, str(self._model.device))
            return _first_line(failure)
        rounding = _ROUNDING.get(together[0][0].dtype, _ROUNDING[torch.float32])
        for own, expected in zip(together, alone, strict=True):
            for logits, wanted in zip(own, expected, strict=True):
                if not (error := _difference(logits, wanted.float())) <= rounding:
                    return (
                        f"its logits beside another sequence differ by {error:.2g} from those alone"
                    )
        if _difference(other[-1], alone[0][-1].float()) <= rounding:
            return "its logits do not depend on what its cache holds"
        return None

    def _alone(
        self, begin: Callable[[Sequence[int]], Passes], text: list[int], row: int
    ) -> list[torch.Tensor]:
        """Logits behind each pass of one row, without the other."""
        counts = [count for entries in _SCHEDULE for index, count in entries if index == row]
        passes, done, logits = begin([len(text)]), 0, []
        for count in counts:
            logits.append(passes([0], [text[done : done + count]])[0])
            done += count
        return logits

    def _run(self, passes: Passes, texts: list[list[int]]) -> list[list[torch.Tensor]]:
        """Logits behind each pass, by row."""
        done, logits = [0] * len(texts), [[] for _ in texts]  # type: ignore[var-annotated]
        for entries in _SCHEDULE:
            rows = [row for row, _ in entries]
            pieces = [texts[row][done[row] : done[row] + count] for row, count in entries]
            for row, own, piece in zip(rows, passes(rows, pieces), pieces, strict=True):
                logits[row].append(own)
                done[row] += len(piece)
        return logits

    def _why_not(self, begin: Callable[[Sequence[int]], Passes], schedule: _Schedule) -> str | None:
        """The first difference that is no rounding, in words; of several texts if need be.

        Every row of every pass must be told of once, in the short texts; the long one, which is
        tried beside them, is one text.
        """
        silent = {(index, row) for index, entries in enumerate(schedule) for row, _ in entries}
        short = schedule is _SCHEDULE
        for number in range(_TEXTS if short else 1):
            texts = self._texts(schedule, number)
            with self._choosing(schedule, number):
                cuts = self._expectation(schedule, number)
                error = self._excess(begin([len(text) for text in texts]), schedule, texts, cuts)
            if error is not None:
                return error
            for index, entries in enumerate(schedule):
                told = zip(entries, cuts[index], strict=True)
                silent -= {(index, row) for (row, _), cut in told if cut.telling}
            if not silent:
                return None
        if short:
            return f"its logits in {self._model.dtype} are rounding for the most part"
        return None

    def _schedules(self) -> Iterator[tuple[_Schedule, Any]]:
        yield _SCHEDULE, narrowed(self._model)
        widest = widest_window(self._model.config.get_text_config())
        if widest > NARROW and self._affordable(widest):
            pieces = (widest + NARROW, *_LONG_TAIL)
            yield tuple(((0, piece),) for piece in pieces), nullcontext()

    def _affordable(self, window: int) -> bool:
        weights = sum(parameter.numel() for parameter in self._model.parameters())
        passes = 2 + len(_LONG_TAIL) * (1 + (_DRAWS if self._narrow else 0))
        tokens = (window + NARROW + sum(_LONG_TAIL)) * passes
        most = _AFFORDABLE.get(self._model.device.type, _AFFORDABLE["cpu"])
        return bool(2.0 * weights * tokens <= most)

    def _choosing(self, schedule: _Schedule, number: int) -> AbstractContextManager[None]:
        """Where rounding may turn a choice of experts, every pass chooses as the model's own."""
        if not self._narrow:
            return nullcontext()
        if (schedule, number) not in self._chosen:
            passes = []
            for text in self._texts(schedule, number):
                with recorded(self._model) as own:
                    self._full_pass(text)
                passes.append(own)
            self._chosen[schedule, number] = of_all(passes)
        return repeated(self._model, self._chosen[schedule, number])

    @staticmethod
    def _excess(
        passes: Passes,
        schedule: _Schedule,
        texts: Sequence[Sequence[int]],
        expected: Sequence[Sequence[_Cut]],
    ) -> str | None:
        """The first difference that is no rounding, in words."""
        done = [0] * len(texts)
        for number, entries in enumerate(schedule):
            pieces = []
            for row, count in entries:
                pieces.append(texts[row][done[row] : done[row] + count])
                done[row] += count
            logits = passes([row for row, _ in entries], pieces)
            for own, cut in zip(logits, expected[number], strict=True):
                error = _difference(own, cut.logits)
                if not error <= (cut.allowed if cut.telling else float("inf")):  # NaN is none
                    return f"its logits differ by {error:.2g} of their spread from its own"
        return None

    def _texts(self, schedule: _Schedule, number: int = 0) -> list[list[int]]:
        width = self._model.get_output_embeddings().weight.shape[0]
        lengths: dict[int, int] = {}
        for entries in schedule:
            for row, count in entries:
                lengths[row] = lengths.get(row, 0) + count
        generator = torch.Generator().manual_seed(number)
        return [
            torch.randint(0, width, (lengths[row],), generator=generator).tolist()
            for row in sorted(lengths)
        ]

    def _expectation(self, schedule: _Schedule, number: int) -> list[list[_Cut]]:
        """By pass and row of the pass; computed once."""
        if (schedule, number) in self._expected:
            return self._expected[schedule, number]
        texts = self._texts(schedule, number)
        done = [0] * len(texts)
        cuts: list[list[_Cut]] = []
        for entries in schedule:
            cuts.append([])
            for row, count in entries:
                start, done[row] = done[row], done[row] + count
                cuts[-1].append(self._cut(texts[row], start, done[row]))
        self._expected[schedule, number] = cuts
        return cuts

    def _cut(self, text: list[int], start: int, end: int) -> _Cut:
        full = self._full_pass(text[:end])
        signal = 1.0  # how much the logits depend on what came before
        if start:
            signal = min(signal, _difference(self._full_pass(text[start:end]), full.float()))
        tolerance = _TOLERANCE.get(self._dtype, _TOLERANCE[torch.float32])
        rounding = _ROUNDING.get(self._dtype, _ROUNDING[torch.float32])
        allowed = max(rounding, tolerance * signal)
        if not self._narrow:
            return _Cut(full.float(), allowed)
        for draw in range(_DRAWS):
            with _rounded_anew(self._model, torch.finfo(self._dtype).eps, draw):
                noise = _difference(self._full_pass(text[:end]), full.float())
            allowed = max(allowed, _NOISES * noise)
        return _Cut(full.float(), allowed, telling=allowed <= _TELLING * signal)

    def _full_pass(self, ids: list[int]) -> torch.Tensor:
        """Logits of the last token, ``[V]``, by the model's own attention and without a cache."""
        named = {"use_cache": False, "logits_to_keep": 1}
        arguments = {name: value for name, value in named.items() if name in self._parameters}
        config = self._model.config.get_text_config()
        before = config._attn_implementation
        config._attn_implementation = self._attention or before
        try:
            tensor = torch.tensor([ids], device=self._model.device)
            output = self._model(input_ids=tensor, **arguments)
        finally:
            config._attn_implementation = before
        logits: torch.Tensor = output.logits[0, -1]
        return logits


@contextmanager
def _rounded_anew(model: Any, epsilon: float, draw: int) -> Iterator[None]:
    """The embeddings of a model's tokens are off by about the last place meanwhile."""
    generator = torch.Generator().manual_seed(draw)

    def moved(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(output.shape, generator=generator).to(output.device)
        return (output * (1 + epsilon * noise)).to(output.dtype)

    hook = model.get_input_embeddings().register_forward_hook(moved)
    try:
        yield
    finally:
        hook.remove()


def _difference(own: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over the spread."""
    spread = float(expected.std()) + 1e-6
    error = (own.float().to(expected.device) - expected).square().mean().sqrt()
    return float(error) / spread if torch.isfinite(error) else float("inf")


def _first_line(failure: Exception) -> str:
    lines = str(failure).splitlines()
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"
