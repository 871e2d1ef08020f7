"""Drafts in a loop of your own: the small model writes ahead, one pass of the large one verifies.

Where `own_engine_loop.py` runs the large model once for each token of a hard step, this runs it
once for several. The text is the same: a draft only counts where the large model writes it, too.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import glimprouter as gr
from glimprouter.demo_pair import RECOMMENDED_THRESHOLD, large_path, small_path

PROMPT = "Reduce 18,39,12"
MOST_DRAFTS = 8


def logits_of(model: Any, ids: list[int], last: int) -> torch.Tensor:
    """Your engine's forward pass: logits behind the last so many tokens, ``[last, V]``."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0, -last:]
    return logits


def draft(router: gr.StepRouter, small: Any, row: int, ids: list[int], room: int) -> list[int]:
    """What the small model thinks that the large one writes next, fewer tokens than its room."""
    out = router.outputs(1)
    drafts: list[int] = []
    while len(drafts) < min(MOST_DRAFTS, room - 1):
        logits = logits_of(small, ids + drafts, 1)
        router.draft("small", logits, [row], [len(drafts)], drafts, out)
        if out.status[0] != gr.Status.OK or out.phase[0] != router.phase(row):
            break  # it ends the step: the row of logits before it gives it, too
        drafts.append(int(out.token[0]))
    return drafts


def main() -> None:
    """Writes one chain of thought; says how many tokens each pass of the large model gave."""
    tokenizer = AutoTokenizer.from_pretrained(small_path())
    small = AutoModelForCausalLM.from_pretrained(small_path()).eval()
    large = AutoModelForCausalLM.from_pretrained(large_path()).eval()
    boundary = gr.StepBoundary.from_tokenizer(tokenizer)
    config = gr.RouterConfig(threshold=RECOMMENDED_THRESHOLD, temperature=0.0, max_answer_tokens=16)
    router = gr.StepRouter(boundary, config)
    out = router.outputs(1 + MOST_DRAFTS)  # an entry for each row of logits

    chat = [{"role": "user", "content": PROMPT}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    row = router.open(seed=0, start=boundary.read_prompt(ids))
    start, passes = len(ids), []
    while router.phase(row) != gr.Phase.DONE:
        if row in router.pending("small"):
            router.step("small", logits_of(small, ids, 1), [row], out)
            rows = 1
        else:
            room = router.state(row)["room"]
            drafts = draft(router, small, row, ids, room)
            rows = 1 + len(drafts)
            logits = logits_of(large, ids + drafts, rows)
            (taken,) = router.verify("large", logits, [row], [len(drafts)], drafts, out)
            passes.append(int(taken))
        for entry in range(rows):
            if out.token[entry] >= 0:
                ids.append(int(out.token[entry]))
            if out.forced[entry]:
                ids += boundary.close_ids
    print(tokenizer.decode(ids[start:]))
    print(f"tokens of each pass of the large model: {passes}")


if __name__ == "__main__":
    main()
