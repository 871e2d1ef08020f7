"""What one model's glimpses look like under plain generate(), before you choose a pair."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, AutoTokenizer

from glimprouter.demo_pair import small_path
from glimprouter.hf import GlimpseObserver


def main() -> None:
    """Prints the entropy of each step's first token, and shares for some thresholds."""
    tokenizer = AutoTokenizer.from_pretrained(small_path())
    model = AutoModelForCausalLM.from_pretrained(small_path()).eval()
    observer = GlimpseObserver(tokenizer)
    chat = [{"role": "user", "content": "Reduce 18,39,12"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model.generate(**inputs, max_new_tokens=200, do_sample=False, logits_processor=[observer])
    for glimpse in observer.glimpses(0):
        print(f"step {glimpse.step}: H = {glimpse.entropy:.3f} nats")


if __name__ == "__main__":
    main()
