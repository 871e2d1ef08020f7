"""Whether steps repeat is a matter of their text, not of who wrote it in which tokens."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import glimprouter as gr
from router_model import in_circles

# Two vocabularies over the same letters: other ids, other merges, white space elsewhere.
SMALL = (b"a", b"b", b"ab", b"ba", b" ", b"\n\n", b"b\n\n", "ä".encode(), None)
LARGE = ("ä".encode(), b"bab", b" a", b"a", b"b", b".\n\n", b"\n\n", b"\xc3", b"\xa4", None, b"aa")
SPECIAL = b"\xff"  # stands for a special token, which has no bytes
VOCABULARIES = {"small": SMALL, "large": LARGE}


def step_tokens(vocabulary: tuple[bytes | None, ...]) -> st.SearchStrategy[list[int]]:
    """Ids that write one step: text without a delimiter, then one."""
    inner = [i for i, data in enumerate(vocabulary) if data is None or b"\n" not in data]
    ends = [i for i, data in enumerate(vocabulary) if data is not None and b"\n" in data]
    text = st.lists(st.sampled_from(inner), min_size=1, max_size=3).filter(
        lambda ids: any((vocabulary[i] or b"").strip() for i in ids)
    )
    return st.tuples(text, st.sampled_from(ends)).map(lambda parts: [*parts[0], parts[1]])


steps = st.one_of(
    *(st.tuples(st.just(name), step_tokens(words)) for name, words in VOCABULARIES.items())
)


def logits(width: int, token: int) -> np.ndarray:
    row = np.zeros((1, width), np.float32)
    row[0, token] = 20.0
    return row


@settings(max_examples=400, deadline=None)
@given(steps=st.lists(steps, min_size=3, max_size=9))
def test_texts_are_compared(steps: list[tuple[str, list[int]]]) -> None:
    boundaries = {name: gr.StepBoundary(words) for name, words in VOCABULARIES.items()}
    config = gr.RouterConfig(temperature=0.0, route="manual", max_step_tokens=50)
    router = gr.StepRouter(boundaries["small"], config, boundaries["large"], max_sequences=1)
    row = router.open()
    outputs = router.outputs(1)
    finished: list[bytes] = []
    for writer, ids in steps:
        written = b"".join(VOCABULARIES[writer][i] or SPECIAL for i in ids)
        finished.append(b"".join(written.split()))
        while router.phase(row) == gr.Phase.GLIMPSE:  # the glimpse of something visible
            router.step(
                "small", logits(len(SMALL), ids[0] if writer == "small" else 0), [row], outputs
            )
            if outputs.token[0] >= 0:
                ids = ids[1:]
        router.decide(writer, [row], outputs)
        for token in ids[1:] if writer == "small" else ids:
            router.step(writer, logits(len(VOCABULARIES[writer]), token), [row], outputs)
        repeated = outputs.end_reason[0] == gr.EndReason.REPETITION
        assert repeated == in_circles(finished), finished
        if repeated:
            return
        assert outputs.end_reason[0] == gr.EndReason.DELIMITER
