"""A pass over pages as one native call: all layers of a decoder on the CPU, in float32.

The model's own code stays the measure: what is found is tried against it, and it runs wherever
somebody watches the model, or changed it, since then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glimprouter import _C
from glimprouter.hf.attention.fused_layers import Writing
from glimprouter.hf.attention.layers import ObservingPass, kv_layout
from glimprouter.hf.attention.paged import packed_forward, paged_forward
from glimprouter.hf.decoder.parts import DecoderParts, OtherModel, find_parts
from glimprouter.hf.decoder.watch import Watch
from glimprouter.kv import KvCache, KvLayout, PagePool, RaggedBatch
from glimprouter.torch import AttentionOptions

_TOLERANCE = 1e-4  # of the spread of a trial's logits: sums in another order move them by 1e-6
_LENGTHS = (5, 19)  # of the sequences of a trial
_FIRST_POSITIONS = 512  # of the tables of angles, which grow
# Bytes of weights, times tokens, that one thread goes through while the model's own code would only
# have called torch, however many threads that has.
_WORK_OF_ONE_THREAD = 1 << 30


class HostDecoderPass:
    """Forward passes of one model; its weights stay in memory as long as this lives."""

    def __init__(
        self, model: Any, parts: DecoderParts, layout: KvLayout, scales: list[float]
    ) -> None:
        """As the model is now.

        Args:
            model: A model of transformers.
            parts: Of it.
            layout: Of its pages.
            scales: Of the attention of each layer.

        Raises:
            ValueError: The parts do not fit together.
        """
        layers = [(*layer, scale) for layer, scale in zip(parts.layers, scales, strict=True)]
        # Aliases: a module that is given another tensor frees what somebody may be reading.
        embedding, layers, norm, head = _aliases((parts.embedding, layers, parts.norm, parts.head))
        self._model = model
        self._native = _C.HostDecoder(layout, embedding, layers, norm, head)
        self._watch = Watch(model)
        self._rotary = parts.rotary
        self._positions = int(model.config.max_position_embeddings)
        self._vocabulary = len(parts.head[0])
        weights = {tensor.data_ptr(): tensor.nbytes for tensor in model.parameters()}
        self._bytes = sum(weights.values())
        self._cosine = self._sine = torch.empty(0, 0, device="cpu")

    def takes(self, tokens: int) -> bool:
        """Whether it computes what the model's own code would, and is not the slower one.

        Matrix products run on the library's threads, those of the model's own code on torch's.

        Args:
            tokens: Of the pass.
        """
        return (
            (
                torch.get_num_threads() <= _C.get_num_threads()
                or self._bytes * tokens <= _WORK_OF_ONE_THREAD
            )
            and not torch.is_autocast_enabled("cpu")
            and not torch._C._len_torch_function_stack()
            and not torch._C._len_torch_dispatch_stack()
            and self._watch.unchanged()
        )

    def __call__(
        self, pool: PagePool, batch: RaggedBatch, rows: npt.NDArray[np.int32] | None = None
    ) -> torch.Tensor:
        """As :func:`glimprouter.hf.attention.paged.paged_forward`: logits ``[rows, V]``."""
        longest = int(batch.seq_lens.max())
        if longest > len(self._cosine):
            self._grow(longest)
        wanted = batch.last_rows if rows is None else rows
        # Another thread may have set another default type, or device, for a moment.
        logits = torch.empty(len(wanted), self._vocabulary, dtype=torch.float32, device="cpu")
        self._native.run(pool, batch, self._cosine, self._sine, wanted, logits)
        return logits

    def passes_ahead(self, writing: Writing, longest: int, seconds: float) -> None:
        """Goes on behind a step: appends its tokens, computes a pass, takes a step, and so on.

        Ends when a sequence does not simply go on, when the outputs are full, when the time is
        over, or when a pass cannot be computed. What the last pass brought is not appended. Pass k
        has the outputs ``writing.ahead[k * rows : (k + 1) * rows]``; those of passes that there
        were not have the status ``NOT_REACHED``.

        Args:
            writing: By this model; each of the sequences has computed all but the step's token.
            longest: Tokens of the longest sequence, with that one.
            seconds: After which no further pass begins.
        """
        most = longest + len(writing.ahead.token) // len(writing.rows)
        wanted = max(longest, min(most, self._positions))
        if wanted > len(self._cosine):
            self._grow(wanted)
        self._native.passes_ahead(
            writing.cache,
            writing.router,
            writing.model,
            writing.sequences,
            writing.rows,
            self._cosine,
            self._sine,
            writing.last,
            writing.ahead,
            seconds,
        )

    @torch.inference_mode()
    def _grow(self, longest: int) -> None:
        """Angles of twice as many positions as there were, or of as many as are needed."""
        wanted = min(max(2 * len(self._cosine), _FIRST_POSITIONS), self._positions)
        positions = torch.arange(max(longest, wanted), device="cpu")[None]
        like = torch.empty(1, 1, 1, dtype=torch.float32, device="cpu")
        cosine, sine = self._rotary(like, positions)
        self._cosine, self._sine = cosine[0].contiguous(), sine[0].contiguous()


def _aliases(part: Any) -> Any:
    """The same with other tensors over the same memory."""
    if isinstance(part, torch.Tensor):
        return part.detach()
    if isinstance(part, tuple | list):
        own = [_aliases(each) for each in part]
        return own if isinstance(part, list) else tuple(own)
    return part


def find_host_pass(model: Any) -> HostDecoderPass | None:
    """The native pass of a model, tried against the model's own; None for one that has none.

    Args:
        model: A model of transformers that is served on pages of the CPU.
    """
    try:
        parts = find_parts(model)
        layout = kv_layout(model)
        scales = _scales_of(model, layout)
        found = HostDecoderPass(model, parts, layout, scales)
        return found if _agrees(model, layout, found) else None
    except (
        Exception
    ):  # another model, sizes that it does not take, or code that fails: others say why
        return None


@torch.inference_mode()
def _scales_of(model: Any, layout: KvLayout) -> list[float]:
    """Of the attention of each layer.

    Raises:
        OtherModel: It attends otherwise than to all that is before a token.
    """
    observer = ObservingPass()
    token = torch.zeros(1, 1, dtype=torch.long, device="cpu")
    packed_forward(model, token, token, observer, None)
    if sorted(observer.options) != list(range(layout.num_layers)):
        raise OtherModel
    options = [observer.options[layer] for layer in range(layout.num_layers)]
    if any(own != AttentionOptions(own.scale) for own in options):
        raise OtherModel
    return [own.scale for own in options]


def _agrees(model: Any, layout: KvLayout, found: HostDecoderPass) -> bool:
    """Whether both give the same logits for two prompts and a token behind each."""
    generator = np.random.default_rng(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    prompts = [generator.integers(vocabulary, size=length).tolist() for length in _LENGTHS]
    following = generator.integers(vocabulary, size=len(prompts)).tolist()
    results = []
    for native in (False, True):
        pages = 2 + 2 * len(prompts)
        pool = PagePool([layout], pages * layout.page_bytes, layout.page_bytes)
        cache = KvCache(pool, len(prompts))
        sequences = [cache.open([prompt]) for prompt in prompts]
        for step in range(2):
            if step:
                for sequence, token in zip(sequences, following, strict=True):
                    cache.append(0, sequence, [token])
            batch = cache.prepare(0, sequences)
            results.append(found(pool, batch) if native else paged_forward(model, pool, batch))
            cache.complete(batch)
    want, got = torch.cat(results[:2]), torch.cat(results[2:])
    return bool((got - want).abs().max() <= _TOLERANCE * want.std())
