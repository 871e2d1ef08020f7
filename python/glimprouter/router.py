"""StepRouter: many sequences, one call that turns logits into tokens and routes."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glimprouter import _C
from glimprouter.boundary import SequenceStart, StepBoundary
from glimprouter.config import RouterConfig, check_integer, check_random_key, native_options

__all__ = ["EndReason", "OutputField", "Phase", "Route", "StepOutputs", "StepRouter"]


class Phase(enum.IntEnum):
    """What a sequence waits for."""

    GLIMPSE = 0  # the small model's logits at a step's start
    SMALL_STEP = 1  # the small model's next logits
    LARGE_STEP = 2  # the large model's, also for the step's first token after a decision
    AWAIT_DECISION = 3  # route="manual": StepRouter.decide
    ANSWER = 4  # the answer model's
    DONE = 5


class EndReason(enum.IntEnum):
    """Why a step (or the answer) ended."""

    NONE = 0
    DELIMITER = 1
    CAP = 2  # max_step_tokens
    THINK_END = 3
    BUDGET = 4  # max_think_tokens: closed by force
    REPETITION = 5  # closed by force
    EOS = 6
    ANSWER_BUDGET = 7  # max_answer_tokens


class Route(enum.IntEnum):
    """A decision made in a call."""

    NONE = 0
    SMALL = 1
    LARGE = 2


class OutputField(enum.IntFlag):
    """Mask of the statistics that :class:`StepOutputs` holds; the others are None."""

    NONE = 0
    LOGPROB = 1
    LOGSUMEXP = 2
    MAX_PROB = 4
    MARGIN = 8
    VARENTROPY = 16
    DEFAULT = LOGPROB | LOGSUMEXP | MAX_PROB | MARGIN
    ALL = DEFAULT | VARENTROPY


class StepOutputs(_C.StepOutputs):
    """Results of :meth:`StepRouter.step`, preallocated: NumPy views that each call overwrites.

    Made by :meth:`StepRouter.outputs`. Entry i belongs to ``rows[i]`` of the call.

    Attributes:
        token: Token committed in this call, int32 ``[n]``; -1 for none (a step that went to the
            large model, a manual glimpse, a row with invalid logits).
        status: :class:`Status`, uint8 ``[n]``. Other than OK: the row is unchanged.
        route: :class:`Route` decided in this call, uint8 ``[n]``.
        phase: :class:`Phase` after the call, uint8 ``[n]``.
        end_reason: :class:`EndReason` of the step or answer that this token ended, uint8 ``[n]``.
        step_index: Step that the token belongs to, int32 ``[n]``; -1 in the answer.
        forced: Closing ids (``boundary.close_ids``) to append after the token, int32 ``[n]``.
        room: Tokens that the model which the row then waits for may write, at most, before its
            step, the thinking or the answer is over, int32 ``[n]``; 0: it waits for none.
        entropy: Nats, float32 ``[n]``: full, or of the top k with ``entropy_top_k``.
        logprob: ln p of the committed or candidate token at temperature 1, float32 ``[n]``. This
            and the following: None unless the mask asks for it.
        logsumexp: float32 ``[n]``.
        max_prob: Largest probability, float32 ``[n]``.
        margin: p1 - p2, float32 ``[n]``.
        varentropy: Variance of -ln p in square nats, float32 ``[n]``.
        logprobs: ln p of ``logprob_ids``, float32 ``[n, K]``; None without ids.
    """

    def __init__(
        self,
        n: int,
        fields: OutputField = OutputField.DEFAULT,
        logprob_ids: Sequence[int] | None = None,
    ) -> None:
        """See :meth:`StepRouter.outputs`."""
        if not isinstance(fields, OutputField):
            raise TypeError(
                "fields must be a mask of glimprouter.OutputField members (for example"
                f" OutputField.DEFAULT | OutputField.VARENTROPY), got {fields!r}"
            )
        check_integer("n", n, 0)
        ids = [] if logprob_ids is None else np.asarray(logprob_ids).tolist()
        for token in ids:
            check_integer("each of logprob_ids", token, 0)
        super().__init__(n, int(fields), ids)
        views: dict[str, npt.NDArray[Any]] = _C.StepOutputs.views(self)
        self.token: npt.NDArray[np.int32] = views["token"]
        self.status: npt.NDArray[np.uint8] = views["status"]
        self.route: npt.NDArray[np.uint8] = views["route"]
        self.phase: npt.NDArray[np.uint8] = views["phase"]
        self.end_reason: npt.NDArray[np.uint8] = views["end_reason"]
        self.step_index: npt.NDArray[np.int32] = views["step_index"]
        self.forced: npt.NDArray[np.int32] = views["forced"]
        self.room: npt.NDArray[np.int32] = views["room"]
        self.entropy: npt.NDArray[np.float32] = views["entropy"]
        self.logprob: npt.NDArray[np.float32] | None = views.get("logprob")
        self.logsumexp: npt.NDArray[np.float32] | None = views.get("logsumexp")
        self.max_prob: npt.NDArray[np.float32] | None = views.get("max_prob")
        self.margin: npt.NDArray[np.float32] | None = views.get("margin")
        self.varentropy: npt.NDArray[np.float32] | None = views.get("varentropy")
        self.logprobs: npt.NDArray[np.float32] | None = views.get("logprobs")


class StepRouter(_C.StepRouter):
    """Routes the steps of many sequences (arXiv 2601.05110); needs no model and no page pool.

    The loop around it: for each model, run its forward pass for the rows of ``pending(model)``,
    hand the logits to :meth:`step`, append the committed tokens (and the forced ids) to each
    sequence.

    One router belongs to one thread, the first that uses it; another thread gets a RuntimeError
    until it calls :meth:`attach`.
    """

    def __init__(
        self,
        boundary: StepBoundary,
        config: RouterConfig | None = None,
        large_boundary: StepBoundary | None = None,
        max_sequences: int = 64,
        device: str = "cpu",
    ) -> None:
        """Prepares a router.

        Args:
            boundary: Where steps end, of the small model's tokenizer.
            config: Options of every sequence (default: ``RouterConfig()``).
            large_boundary: Boundary of the large model's tokenizer where that differs; it has
                the same delimiters.
            max_sequences: Rows that can be open at a time, >= 1.
            device: Where the logits will live and the sequences are kept: ``"cpu"``, or for example
                ``"cuda:0"`` (``build_info()["devices"]`` lists them). The results are the same to
                the bit. On a device, calls other than :meth:`step`, :meth:`launch` and :meth:`wait`
                read or write its memory and wait for it.

        Raises:
            TypeError: An argument is something else.
            ValueError: Different delimiters, ``max_sequences`` < 1, or an unknown device.
            RuntimeError: No such device, or not enough memory on it.
        """
        if not isinstance(boundary, StepBoundary):
            raise TypeError(f"boundary must be a StepBoundary, got {type(boundary).__name__}")
        if large_boundary is not None and not isinstance(large_boundary, StepBoundary):
            raise TypeError(
                f"large_boundary must be a StepBoundary, got {type(large_boundary).__name__}"
            )
        check_integer("max_sequences", max_sequences, 1)
        if config is not None and not isinstance(config, RouterConfig):
            raise TypeError(f"config must be a RouterConfig, got {type(config).__name__}")
        super().__init__(boundary, large_boundary, max_sequences, str(device))
        self.boundary = boundary
        self.large_boundary = large_boundary or boundary
        self.config = config or RouterConfig()

    def open(
        self,
        seed: int = 0,
        substream: int = 0,
        start: SequenceStart | None = None,
        **overrides: Any,
    ) -> int:
        """Start a sequence at the end of its prompt.

        Args:
            seed: Seed of the run, in [0, 2^64).
            substream: Random key of this sequence, in [0, 2^64); sequences with distinct ones
                draw independently.
            start: Where the prompt leaves off, from ``boundary.read_prompt(ids)``: in the answer
                where its thinking is closed, or within a step; None for a step's start.
            **overrides: Fields of :class:`RouterConfig` for this sequence alone.

        Returns:
            The row, to be used in every other call.

        Raises:
            TypeError: An unknown option, or one of the wrong type.
            ValueError: An option outside its range, or an answer of no tokens.
            RuntimeError: All rows are in use, or the wrong thread.
        """
        for name, value in (("seed", seed), ("substream", substream)):
            check_random_key(name, value)
        config = self.config.replace(**overrides) if overrides else self.config
        begin = SequenceStart() if start is None else SequenceStart(*start)
        return self._open(int(seed), int(substream), native_options(config), begin)

    def outputs(
        self,
        n: int,
        fields: OutputField = OutputField.DEFAULT,
        logprob_ids: Sequence[int] | None = None,
    ) -> StepOutputs:
        """Preallocate results for batches of up to ``n`` rows.

        Args:
            n: Largest batch.
            fields: Mask of the statistics wanted.
            logprob_ids: Ids whose log-probabilities are wanted, each below the vocabulary size.

        Raises:
            TypeError: ``fields`` is no mask.
            ValueError: ``n`` is negative.
        """
        outputs = StepOutputs(n, fields, logprob_ids)
        self._attach_outputs(outputs)
        return outputs

    def phase(self, row: int) -> Phase:
        """What the sequence waits for."""
        return Phase(self.state(row)["phase"])

    def position(self, row: int) -> int:
        """Number of generated tokens, forced ids included."""
        return int(self.state(row)["position"])

    def step_index(self, row: int) -> int:
        """Index of the running step."""
        return int(self.state(row)["step_index"])
