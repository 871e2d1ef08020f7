"""The logits processor that vLLM loads by name: ``glimprouter.vllm:GlimpGate``.

Written for both interfaces of vLLM's model runners: the first is that of CPUs, and of GPUs with
``VLLM_USE_V2_MODEL_RUNNER=0``. It is never an entry point: the second runner refuses to start
where one of the first kind is installed.
"""

from __future__ import annotations

from typing import Any

import torch
import vllm
from transformers import AutoTokenizer

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondInterface
except ImportError as error:
    raise ImportError(
        f"vLLM {vllm.__version__} has not both interfaces of logits processors; the gate was made"
        " for 0.32"
    ) from error

from glimprouter.vllm.gate.rows import Boundaries, GateRow, leave_one_token
from glimprouter.vllm.protocol import ARGUMENT, LOGPROBS_MODE, GateOptions

_UNTOUCHED = {
    "temperature": 0.0,
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
}
_UNSET = ("logit_bias", "allowed_token_ids", "bad_words", "structured_outputs")


class GlimpGate(LogitsProcessor, SecondInterface):  # type: ignore[misc]
    """Draws the tokens of gated requests, and ends a request at its first hard step.

    Requests without the extra argument are left alone.
    """

    def __init__(self, vllm_config: Any, state: Any, is_pin_memory: bool = False) -> None:
        """Made by vLLM, in each process that samples.

        Args:
            vllm_config: Of the engine.
            state: The device (first interface), or the state of all requests (second).
            is_pin_memory: Of the first interface.

        Raises:
            ValueError: The engine cannot have a gate.
        """
        _check_engine(vllm_config)
        model = vllm_config.model_config
        tokenizer = AutoTokenizer.from_pretrained(
            model.tokenizer,
            revision=model.tokenizer_revision,
            trust_remote_code=model.trust_remote_code,
        )
        self._boundaries = Boundaries(tokenizer)
        self._requests: Any = None if isinstance(state, torch.device | str) else state
        # By index in the batch, with the list of its tokens (first), or by slot (second interface).
        self._rows: dict[int, tuple[GateRow, list[int]]] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuses a request that the gate could not serve; the server answers it with HTTP 400.

        Raises:
            ValueError: Options that are none, or that change logits behind the gate.
        """
        text = (sampling_params.extra_args or {}).get(ARGUMENT)
        if text is None:
            return
        options = GateOptions.from_json(text)
        for name, value in _UNTOUCHED.items():
            given = getattr(sampling_params, name, value)
            if given != value:
                raise ValueError(
                    f"a gated request must have {name}={value}, got {given}: the gate draws by its"
                    " own options"
                )
        for name in _UNSET:
            if getattr(sampling_params, name, None):
                raise ValueError(f"a gated request cannot have {name}: it would change its tokens")
        if options.handoff not in (sampling_params.stop_token_ids or ()):
            raise ValueError(
                f"a gated request must have its hand-off token {options.handoff} among"
                f" stop_token_ids, got {sampling_params.stop_token_ids}"
            )
        if sampling_params.logprobs is None:
            raise ValueError("a gated request must ask for logprobs: they are the gate's answer")

    # The first interface.

    def is_argmax_invariant(self) -> bool:
        """It is not: greedy sampling takes what the gate leaves."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follows the batch."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, written in batch_update.added:
            self._add(index, params, written)
        for source, target, direction in batch_update.moved:
            moved, other = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if direction == MoveDirectionality.SWAP and other is not None:
                self._rows[source] = other

    def _add(self, index: int, params: Any, written: list[int]) -> bool:
        self._rows.pop(index, None)
        text = (params.extra_args or {}).get(ARGUMENT)
        if text is None:
            return False
        self._rows[index] = (self._boundaries.row(GateOptions.from_json(text)), written)
        return True

    # The second interface.

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request enters a slot."""
        return self._add(req_idx, sampling_params, [])

    # Both.

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Leaves one token of each gated row.

        Args:
            logits: ``[B, V]`` float32.
            ctx: The batch, by the second interface.
        """
        if not self._rows:
            return logits
        gated = self._in_batch(logits) if ctx is None else self._in_slots(ctx)
        leave_one_token(logits, gated)
        return logits

    def _in_batch(self, logits: torch.Tensor) -> list[tuple[int, GateRow]]:
        gated = []
        for index, (row, written) in self._rows.items():
            if index < len(logits):
                row.follow(written)
                gated.append((index, row))
        return gated

    def _in_slots(self, ctx: Any) -> list[tuple[int, GateRow]]:
        """Rows that write a token now: one of a prompt that is half read writes none."""
        state = self._requests
        gated = []
        lengths = ctx.seq_lens_upper_bound_np.tolist()
        for place, slot in enumerate(ctx.idx_mapping_np.tolist()):
            entry = self._rows.get(slot)
            if entry is None or lengths[place] < int(state.prefill_len.np[slot]):
                continue
            row, _ = entry
            prompt = int(state.prompt_len.np[slot])
            count = lengths[place] - prompt
            written = [-1] * count
            if row.length == 0 and count:  # preempted, and begun again: the engine has its tokens
                own = state.all_token_ids.gpu[slot, prompt : prompt + count]
                written = own.tolist()
            row.follow(written)
            gated.append((place, row))
        return gated


def _check_engine(vllm_config: Any) -> None:
    """Refuses an engine whose rows are not one a request, or whose answers would not come back."""
    if getattr(vllm_config, "speculative_config", None) is not None:
        raise ValueError(
            "the gate cannot be combined with speculative decoding of the engine: a decision"
            " belongs to a token that has been written; start vLLM without --speculative-config"
        )
    mode = vllm_config.model_config.logprobs_mode
    if str(getattr(mode, "value", mode)) != LOGPROBS_MODE:
        raise ValueError(
            f"the gate answers by logits: start vLLM with --logprobs-mode {LOGPROBS_MODE} (it has"
            f" {mode})"
        )
