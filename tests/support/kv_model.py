"""A plain model of the paged KV cache: pages are objects, a dict says what each token wrote."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

import glimprouter as gr
from ledger_model import LedgerModel, Words


@dataclass
class SharedList:
    """The tokens of models with one vocabulary, as far as LedgerModel is called here."""

    written: list[int] = field(default_factory=list)

    def copy(self) -> SharedList:
        return SharedList(list(self.written))

    def ids(self, model: int) -> list[int]:
        return self.written

    def append(self, model: int, ids: list[int]) -> None:
        self.written += ids

    def covered(self, model: int) -> int:
        return len(self.written)

    def truncate(self, size: int) -> list[tuple[int, int]]:
        del self.written[size:]
        return [(size, 0)] * 2


@dataclass(eq=False)
class Page:
    """A page is an object: shared when two lists hold it."""

    values: dict[int, float] = field(default_factory=dict)  # place in the page -> what was written


@dataclass
class Cached:
    """One sequence."""

    prompts: list[list[int]]
    ledger: SharedList | LedgerModel
    pages: list[list[Page]]  # [models]
    committed: list[int]  # [models]
    excess: list[int]  # [models]
    in_flight: bool = False
    end: int = 0  # of the batch in flight

    def length(self, model: int) -> int:
        return len(self.ids(model))

    def ids(self, model: int) -> list[int]:
        return self.prompts[model] + self.ledger.ids(model)

    def caught_up(self, model: int) -> bool:
        return self.ledger.covered(model) == len(self.ledger.written)


class CacheModel:
    """What KvCache must do."""

    def __init__(self, page_size: list[int], words: Words | None = None) -> None:
        self.page_size = page_size
        self.words = words
        self.sequences: dict[int, Cached] = {}

    def open(self, sequence: int, prompts: list[list[int]]) -> None:
        count = len(prompts)
        ledger = SharedList() if self.words is None else LedgerModel(self.words)
        pages: list[list[Page]] = [[] for _ in range(count)]
        self.sequences[sequence] = Cached(prompts, ledger, pages, [0] * count, [0] * count)

    def copy(self, source: int, target: int) -> None:
        """A fork shares the page objects."""
        old = self.sequences[source]
        pages = [list(p) for p in old.pages]
        self.sequences[target] = Cached(
            old.prompts, old.ledger.copy(), pages, list(old.committed), list(old.excess)
        )

    def deep_copy(self, source: Cached) -> Cached:
        """A loaded sequence has pages of its own."""
        pages = [[Page(dict(page.values)) for page in model] for model in source.pages]
        return Cached(
            source.prompts,
            source.ledger.copy(),
            pages,
            list(source.committed),
            list(source.excess),
        )

    def users(self, page: Page) -> int:
        return sum(page in pages for s in self.sequences.values() for pages in s.pages)

    def owned(self, model: int) -> int:
        return len({id(page) for s in self.sequences.values() for page in s.pages[model]})

    def truncate(self, sequence: int, generated: int) -> None:
        cached = self.sequences[sequence]
        for model, (kept, spoiled) in enumerate(cached.ledger.truncate(generated)):
            self.drop(cached, model, kept, spoiled)

    def forget(self, model: int, sequence: int, count: int) -> None:
        cached = self.sequences[sequence]
        cached.committed[model] -= count
        del cached.pages[model][-(-cached.committed[model] // self.page_size[model]) :]

    def resolve(self, model: int, sequence: int, spans: list[list[int]]) -> None:
        cached = self.sequences[sequence]
        assert isinstance(cached.ledger, LedgerModel)
        self.drop(cached, model, cached.ledger.resolve(model, spans), len(cached.ids(model)))

    def drop(self, cached: Cached, model: int, kept: int, spoiled: int) -> None:
        """What was computed of the ids behind the first `kept` goes; the spoiled are excess."""
        lost = max(0, cached.committed[model] - len(cached.prompts[model]) - kept)
        cached.committed[model] -= lost
        cached.excess[model] += min(lost, spoiled)
        del cached.pages[model][-(-cached.committed[model] // self.page_size[model]) :]

    def ends(self, model: int, sequences: list[int]) -> list[int]:
        """The frontiers: where a pass ends that is not told to end before."""
        return [self.sequences[sequence].length(model) for sequence in sequences]

    def pages_wanted(self, model: int, sequences: list[int], ends: list[int]) -> int:
        """New pages, and copies of shared ones that are about to be written."""
        size, wanted, copied = self.page_size[model], 0, {}
        for sequence, end in zip(sequences, ends, strict=True):
            cached = self.sequences[sequence]
            wanted += -(-end // size) - len(cached.pages[model])
            if cached.committed[model] % size:
                page = cached.pages[model][-1]
                if self.users(page) - copied.get(id(page), 0) > 1:
                    copied[id(page)] = copied.get(id(page), 0) + 1
                    wanted += 1
        return wanted

    def prepare(self, model: int, sequences: list[int], ends: list[int]) -> None:
        size = self.page_size[model]
        for sequence, end in zip(sequences, ends, strict=True):
            cached = self.sequences[sequence]
            pages = cached.pages[model]
            if cached.committed[model] % size and self.users(pages[-1]) > 1:
                pages[-1] = Page(dict(pages[-1].values))
            while len(pages) < -(-end // size):
                pages.append(Page())
            cached.in_flight = True
            cached.end = end

    def write(self, model: int, sequence: int, position: int, value: float) -> None:
        size = self.page_size[model]
        self.sequences[sequence].pages[model][position // size].values[position % size] = value

    def land(self, model: int, sequences: list[int], *, complete: bool) -> None:
        size = self.page_size[model]
        for sequence in sequences:
            cached = self.sequences[sequence]
            cached.in_flight = False
            if complete:
                cached.committed[model] = cached.end
            del cached.pages[model][-(-cached.committed[model] // size) :]

    def values(self, model: int, sequence: int) -> list[float]:
        """What each committed token wrote."""
        cached, size = self.sequences[sequence], self.page_size[model]
        return [
            cached.pages[model][position // size].values[position % size]
            for position in range(cached.committed[model])
        ]


def token_view(
    memory: NDArray[np.uint8], layout: gr.KvLayout, page: int, place: int
) -> NDArray[np.float32]:
    """Keys and values of one token in all layers and heads of a float32 page, [L, 2, H, D]."""
    kind = layout.layers[0]
    shape = (layout.num_layers, 2, kind.num_kv_heads, layout.page_size, kind.head_dim)
    whole = memory[page * 256 : page * 256 + 4 * math.prod(shape)]
    view: NDArray[np.float32] = whole.view(np.float32).reshape(shape)[:, :, :, place]
    return view
