"""A table of which tokens may follow a token: texts with the steps of a recorded one.

The vocabulary is dealt into groups, one for each place of a cycle of 20 steps. Whatever token of a
group was written, a token of the next group follows, so that every text passes the same steps, the
length of each as recorded of a 1.5 B model (median 19 tokens, mean 27.8), whoever writes and
whatever is drawn. Which token of the next group it is, is drawn from two: a first one and a second
one, less likely by a margin that differs from token to token.

The last token of a step ends with a delimiter, and its margin says how hard the next step is: the
smaller, the higher the entropy of the glimpse. Three steps of 20 have a margin of 0 and two more
one between these and the others, so that 15 % and 25 % of the steps, and of their tokens, are told
from the others by a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

# Tokens of each step, and how hard it is. A quarter of the steps is a quarter of the tokens.
STEPS = (
    *((8, "easy"), (108, "easy"), (6, "easy"), (10, "easy"), (7, "easy")),
    *((14, "easy"), (25, "hard"), (67, "easy"), (13, "harder"), (20, "easy")),
    *((19, "easy"), (52, "easy"), (22, "hard"), (28, "easy"), (18, "easy")),
    *((32, "easy"), (11, "easy"), (43, "harder"), (16, "easy"), (37, "hard")),
)
CYCLE = sum(length for length, _ in STEPS)
# Nats between the logits of the first and the second token, where a step is glimpsed.
MARGINS = {"hard": 0.0, "harder": 2.6, "easy": 7.5}
WIDEST_MARGIN = 4.0  # elsewhere, evenly from 0
CHOICES = 3  # what may follow: first, second, and the first where the small model is mistaken


@dataclass
class TokenChain:
    """The table, the same for all models of a vocabulary.

    Attributes:
        vocabulary: Number of ids.
        seed: Of what is drawn.
        members: Ids of each group ``[CYCLE, n]``, in the order of the cycle.
        openings: Ids ``[CYCLE]`` that end prompts: behind the i-th, a text begins at place i.
        following: Ids ``[CHOICES, vocabulary]`` that may follow each id; -1 behind ids that have no
            place.
        margins: Nats ``[vocabulary]`` between the logits of the first and the second of them.
        lots: Of each id, evenly drawn from [0, 1).
    """

    vocabulary: int
    seed: int = 0
    members: torch.Tensor = field(init=False)
    openings: torch.Tensor = field(init=False)
    following: torch.Tensor = field(init=False)
    margins: torch.Tensor = field(init=False)
    lots: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Draws the table.

        Raises:
            ValueError: Too few ids.
        """
        size = self.vocabulary // CYCLE - 1
        if size < CHOICES:
            raise ValueError(
                f"a chain needs {(CHOICES + 1) * CYCLE} ids or more, got {self.vocabulary}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(self.vocabulary, generator=generator)
        self.members = order[: CYCLE * size].view(CYCLE, size)
        self.openings = order[CYCLE * size :][:CYCLE]
        self.lots = torch.rand(self.vocabulary, generator=generator)
        self.margins = WIDEST_MARGIN * torch.rand(self.vocabulary, generator=generator)
        self.following = torch.full((CHOICES, self.vocabulary), -1)
        shifts = torch.randint(size, (CYCLE, 1), generator=generator)
        for choice in range(CHOICES):
            columns = (torch.arange(size) + shifts + choice) % size
            after = self.members.gather(1, columns).roll(-1, 0)
            self.following[choice, self.members] = after
            self.following[choice, self.openings] = self.members.gather(1, columns)[:, 0]
        starts = [0, *accumulate(length for length, _ in STEPS)]
        for start, (length, hardness) in zip(starts, STEPS, strict=False):
            self.margins[self.members[start - 1]] = MARGINS[hardness]
            self.margins[self.openings[start : start + length]] = MARGINS[hardness]
        self._ends = torch.tensor(starts[1:]) - 1

    def prompts(self, count: int, tokens: int) -> list[list[int]]:
        """Ids of prompts whose texts begin at places that lie evenly in the cycle.

        Args:
            count: Number of prompts; a multiple of 4 makes texts of a quarter of the cycle
                together pass all of it equally often.
            tokens: Of each.
        """
        generator = torch.Generator().manual_seed(self.seed + 1)
        within = torch.ones(CYCLE, dtype=torch.bool)
        within[self._ends] = False
        filling = self.members[within].flatten()
        ids = filling[torch.randint(len(filling), (count, tokens), generator=generator)]
        ids[:, -1] = self.openings[torch.arange(count) * CYCLE // count]
        return ids.tolist()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer of as many ids, in which the last tokens of steps end with a delimiter."""
        delimiters = set(self.members[self._ends].flatten().tolist())
        names = {f"w{i}\n\n" if i in delimiters else f"w{i} ": i for i in range(self.vocabulary)}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(names, unk_token=None)))
