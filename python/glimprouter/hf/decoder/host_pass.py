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
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.attention.paged import packed_forward, paged_forward
from glimprouter.hf.decoder.parts import DecoderParts, find_parts
from glimprouter.hf.decoder.watch import Watch
from glimprouter.kv import KvCache, KvLayout, PagePool, RaggedBatch
from glimprouter.torch import AttentionOptions

_TOLERANCE = 1e-4  # of the spread of a trial's logits: sums in another order move them by 1e-6
_LENGTHS = (5, 19)  # of the sequences of a trial
_FIRST_POSITIONS = 512  # of the tables of angles, which grow
# Up to so many bytes of weights one thread is as fast as many: they lie in its caches.
_SMALL_BYTES = 32 << 20


class HostDecoderPass:
    """Forward passes of one model."""

    def __init__(
        self, model: Any, parts: DecoderParts, layout: KvLayout, options: list[AttentionOptions]
    ) -> None:
        """As the model is now.

        Args:
            model: A model of transformers.
            parts: Of it.
            layout: Of its pages.
            options: Of the attention of each layer.

        Raises:
            ValueError: The parts do not fit together.
        """
        layers = [
            (*layer, (own.scale, own.window, own.softcap))
            for layer, own in zip(parts.layers, options, strict=True)
        ]
        self._model = model
        self._native = _C.HostDecoder(layout, parts.embedding, layers, parts.norm, parts.head)
        self._watch = Watch(model)
        self._rotary = parts.rotary
        self._vocabulary = len(parts.head[0])
        weights = {tensor.data_ptr(): tensor.nbytes for tensor in model.parameters()}
        self._small = sum(weights.values()) <= _SMALL_BYTES
        self._cosine = self._sine = torch.empty(0, 0)

    def takes(self) -> bool:
        """Whether it computes what the model's own code would, and is not the slower one.

        Matrix products run on the library's threads, those of the model's own code on torch's.
        """
        return (
            (self._small or torch.get_num_threads() <= _C.get_num_threads())
            and not self._model.training
            and not torch.is_autocast_enabled("cpu")
            and self._watch.unchanged()
        )

    @torch.inference_mode()
    def __call__(
        self, pool: PagePool, batch: RaggedBatch, rows: npt.NDArray[np.int32] | None = None
    ) -> torch.Tensor:
        """As :func:`glimprouter.hf.attention.paged.paged_forward`: logits ``[rows, V]``."""
        longest = int(batch.seq_lens.max())
        if longest > len(self._cosine):
            self._grow(longest)
        wanted = batch.last_rows if rows is None else rows
        logits = torch.empty(len(wanted), self._vocabulary)
        self._native.run(pool, batch, self._cosine, self._sine, wanted, logits)
        return logits

    def _grow(self, longest: int) -> None:
        """Angles of twice as many positions as there were, or of as many as are needed."""
        count = max(longest, 2 * len(self._cosine), _FIRST_POSITIONS)
        like = torch.empty(1, 1, 1)
        cosine, sine = self._rotary(like, torch.arange(count)[None])
        self._cosine, self._sine = cosine[0].contiguous(), sine[0].contiguous()


def find_host_pass(model: Any) -> HostDecoderPass | None:
    """The native pass of a model, tried against the model's own; None for one that has none.

    Args:
        model: A model of transformers that is served on pages of the CPU.
    """
    parts = find_parts(model)
    if parts is None or model.training:
        return None
    try:
        layout = kv_layout(model)
        options = _options_of(model, layout)
        if options is None:
            return None
        found = HostDecoderPass(model, parts, layout, options)
        return found if found.takes() and _agrees(model, layout, found) else None
    except Exception:  # of sizes that it does not take, or whose own code fails: others say why
        return None


class _Recorder:
    """A pass that attends to nothing and remembers how each layer would."""

    def __init__(self) -> None:
        self.options: dict[int, AttentionOptions] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As in :class:`glimprouter.torch.AttendingPass`, but zeros."""
        self.options[layer] = options
        batch, heads, tokens, _ = query.shape
        return query.new_zeros((batch, tokens, heads, value.shape[3]))


@torch.inference_mode()
def _options_of(model: Any, layout: KvLayout) -> list[AttentionOptions] | None:
    recorder = _Recorder()
    token = torch.zeros(1, 1, dtype=torch.long)
    packed_forward(model, token, token, recorder, None)
    if sorted(recorder.options) != list(range(layout.num_layers)):
        return None
    options = [recorder.options[layer] for layer in range(layout.num_layers)]
    plain = all(own.sinks is None and own.chunk_size == 0 for own in options)
    return options if plain else None


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
