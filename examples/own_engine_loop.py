"""StepRouter in a loop of your own: an engine runs the models, the router makes tokens of logits.

Two Hugging Face models without a cache stand for the engine here, so that the loop stays short.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import glimprouter as gr
from glimprouter.demo_pair import RECOMMENDED_THRESHOLD, large_path, small_path

PROMPT = "Reduce 18,39,12"


def main() -> None:
    """Writes one chain of thought, and says for each token who wrote it."""
    tokenizer = AutoTokenizer.from_pretrained(small_path())
    models = {
        "small": AutoModelForCausalLM.from_pretrained(small_path()).eval(),
        "large": AutoModelForCausalLM.from_pretrained(large_path()).eval(),
    }
    boundary = gr.StepBoundary.from_tokenizer(tokenizer)
    config = gr.RouterConfig(threshold=RECOMMENDED_THRESHOLD, temperature=0.0, max_answer_tokens=16)
    router = gr.StepRouter(boundary, config)
    out = router.outputs(1)  # memory for a batch of one row, used again by every call

    chat = [{"role": "user", "content": PROMPT}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    row = router.open(seed=0, start=boundary.read_prompt(ids))  # where the prompt leaves off
    while router.phase(row) != gr.Phase.DONE:
        for name, model in models.items():
            if row not in router.pending(name):
                continue
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[:, -1]  # your engine's forward pass
            router.step(name, logits, [row], out)
            if out.route[0] == gr.Route.LARGE:
                print(f"[H = {out.entropy[0]:.2f}: the large model writes this step]", end=" ")
            if out.token[0] >= 0:
                ids.append(int(out.token[0]))
                print(tokenizer.decode(ids[-1:]), end="")
            if out.forced[0]:  # the thinking was closed: append "\n</think>\n\n"
                ids += boundary.close_ids
    print()


if __name__ == "__main__":
    main()
