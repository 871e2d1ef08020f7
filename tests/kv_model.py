"""A plain model of the paged KV cache: pages are objects, a dict says what each token wrote."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

import glimprouter as gr


@dataclass(eq=False)
class Page:
    """A page is an object: shared when two lists hold it."""

    values: dict[int, float] = field(default_factory=dict)  # place in the page -> what was written


@dataclass
class Cached:
    """One sequence."""

    prompts: list[list[int]]
    generated: list[int]
    pages: list[list[Page]]  # [models]
    committed: list[int]  # [models]
    in_flight: bool = False

    def length(self, model: int) -> int:
        return len(self.prompts[model]) + len(self.generated)

    def ids(self, model: int) -> list[int]:
        return self.prompts[model] + self.generated


class CacheModel:
    """What KvCache must do."""

    def __init__(self, page_tokens: list[int]) -> None:
        self.page_tokens = page_tokens
        self.sequences: dict[int, Cached] = {}

    def open(self, sequence: int, prompts: list[list[int]]) -> None:
        models = range(len(prompts))
        self.sequences[sequence] = Cached(prompts, [], [[] for _ in models], [0 for _ in models])

    def copy(self, source: int, target: int) -> None:
        """A fork shares the page objects."""
        old = self.sequences[source]
        self.sequences[target] = Cached(
            old.prompts, list(old.generated), [list(p) for p in old.pages], list(old.committed)
        )

    def deep_copy(self, source: Cached) -> Cached:
        """A loaded sequence has pages of its own."""
        pages = [[Page(dict(page.values)) for page in model] for model in source.pages]
        return Cached(source.prompts, list(source.generated), pages, list(source.committed))

    def users(self, page: Page) -> int:
        return sum(page in pages for s in self.sequences.values() for pages in s.pages)

    def owned(self, model: int) -> int:
        return len({id(page) for s in self.sequences.values() for page in s.pages[model]})

    def truncate(self, sequence: int, generated: int) -> None:
        cached = self.sequences[sequence]
        del cached.generated[generated:]
        for model, size in enumerate(self.page_tokens):
            cached.committed[model] = min(cached.committed[model], cached.length(model))
            del cached.pages[model][-(-cached.committed[model] // size) :]

    def pages_wanted(self, model: int, sequences: list[int]) -> int:
        """New pages, and copies of shared ones that are about to be written."""
        size, wanted, copied = self.page_tokens[model], 0, {}
        for sequence in sequences:
            cached = self.sequences[sequence]
            wanted += -(-cached.length(model) // size) - len(cached.pages[model])
            if cached.committed[model] % size:
                page = cached.pages[model][-1]
                if self.users(page) - copied.get(id(page), 0) > 1:
                    copied[id(page)] = copied.get(id(page), 0) + 1
                    wanted += 1
        return wanted

    def prepare(self, model: int, sequences: list[int]) -> None:
        size = self.page_tokens[model]
        for sequence in sequences:
            cached = self.sequences[sequence]
            pages = cached.pages[model]
            if cached.committed[model] % size and self.users(pages[-1]) > 1:
                pages[-1] = Page(dict(pages[-1].values))
            while len(pages) < -(-cached.length(model) // size):
                pages.append(Page())
            cached.in_flight = True

    def write(self, model: int, sequence: int, position: int, value: float) -> None:
        size = self.page_tokens[model]
        self.sequences[sequence].pages[model][position // size].values[position % size] = value

    def land(self, model: int, sequences: list[int], *, complete: bool) -> None:
        size = self.page_tokens[model]
        for sequence in sequences:
            cached = self.sequences[sequence]
            cached.in_flight = False
            if complete:
                cached.committed[model] = cached.length(model)
            del cached.pages[model][-(-cached.committed[model] // size) :]

    def values(self, model: int, sequence: int) -> list[float]:
        """What each committed token wrote."""
        cached, size = self.sequences[sequence], self.page_tokens[model]
        return [
            cached.pages[model][position // size].values[position % size]
            for position in range(cached.committed[model])
        ]


def token_view(
    memory: NDArray[np.uint8], layout: gr.KvLayout, page: int, place: int
) -> NDArray[np.float32]:
    """Keys and values of one token in all layers and heads of a float32 page, [L, 2, H, D]."""
    whole = memory[page * 256 : page * 256 + layout.num_layers * layout.layer_stride]
    shape = (layout.num_layers, 2, layout.num_kv_heads, layout.page_tokens, layout.head_size)
    assert layout.value_offset * 2 == layout.layer_stride
    view: NDArray[np.float32] = whole.view(np.float32).reshape(shape)[:, :, :, place]
    return view
