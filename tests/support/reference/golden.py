"""Prints one SHA-256 over what the Python functions return for rows made of integers.

Run as a program in a process of its own, because the environment variable GLIMPROUTER_ISA chooses
the instruction set at import time.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCABULARIES = (1, 7, 302, 2049, 5001, 40_000)
ROWS = 24
MODES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.6},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
)


def random_words(stream: int, count: int) -> NDArray[np.uint64]:
    """Returns `count` words of splitmix64."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64((stream * 0xD1342543DE82EF95) & (2**64 - 1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def logits(vocabulary: int) -> NDArray[np.float32]:
    """Returns rows [ROWS, vocabulary]: sums of four 16-bit fields, scaled by powers of two."""
    words = random_words(vocabulary, ROWS * vocabulary)
    fields = words.view(np.uint16).reshape(-1, 4).astype(np.int32).sum(axis=1) - 131_070
    rows = (fields.astype(np.float32) * np.float32(2.0**-14)).reshape(ROWS, vocabulary)
    rows[1::4] = np.trunc(rows[1::4])  # ties
    rows[2::4][rows[2::4] < 0] = -np.inf
    rows[3, vocabulary // 2] = 22.0
    rows[7, vocabulary // 2] = np.nan
    rows[11] = -np.inf
    return rows


def of_drafts() -> list[Any]:
    """Returns what drafts and their verification say, sampled, on rows of one vocabulary."""
    import glimprouter as gr

    vocabulary, rows = 302, logits(302)[:7]
    boundary = gr.StepBoundary([b"\n\n", *(b"t%d" % token for token in range(1, vocabulary))])
    config = gr.RouterConfig(route="large", temperature=0.9, top_p=0.95)
    router = gr.StepRouter(boundary, config)
    out = router.outputs(7, gr.OutputField.ALL)
    row = router.open(seed=2)
    drafts: list[int] = []
    said: list[Any] = []
    for place in range(3):
        router.draft("small", rows[place : place + 1], [row], [place], drafts, out)
        drafts.append(int(out.token[0]))
    said.append(np.array(drafts))
    said.append(router.verify("large", rows[:4], [row], [3], drafts, out))
    said.append(router.verify("large", rows[[0, 1, 4, 5]], [row], [3], [1, 2, 3], out))
    fields = ("token", "status", "phase", "room", "entropy", "logprob", "margin", "varentropy")
    return said + [getattr(out, field).copy() for field in fields]


def digest() -> str:
    """Returns the SHA-256, as hexadecimal digits, of all outputs' bytes."""
    import glimprouter as gr

    sha = hashlib.sha256()
    for vocabulary in VOCABULARIES:
        rows = logits(vocabulary)
        ids = np.array([0, vocabulary // 2, vocabulary - 1], dtype=np.int32)
        full = gr.glimpse(rows, varentropy=True, logprob_ids=ids)
        fields = ("entropy", "logsumexp", "max_prob", "margin", "token", "status", "varentropy")
        outputs = [getattr(full, field) for field in (*fields, "logprobs")]
        outputs.append(gr.glimpse(rows, entropy_top_k=20).entropy)
        for mode in MODES:
            outputs.append(gr.sample(rows, seed=1, substream=np.arange(ROWS), position=5, **mode))
        for values in outputs:
            sha.update(np.ascontiguousarray(values).tobytes())
    for values in of_drafts():
        sha.update(np.ascontiguousarray(values).tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    print(digest())
