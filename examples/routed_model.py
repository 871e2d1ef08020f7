"""Two Hugging Face models as a RoutedModel: events while they write, then the record."""

from __future__ import annotations

import glimprouter as gr
from glimprouter.demo_pair import RECOMMENDED_THRESHOLD, large_path, small_path
from glimprouter.hf import RoutedModel


def main() -> None:
    """Streams two prompts at once and prints who wrote which step."""
    config = gr.RouterConfig(threshold=RECOMMENDED_THRESHOLD, temperature=0.0)
    # On a GPU: device="cuda:0", dtype="bfloat16"; for each model {"small": ..., "large": ...}.
    model = RoutedModel.from_pretrained(small_path(), large_path(), dtype="float32", config=config)
    for event in model.stream(["Reduce 18,39,12", "Reduce 47,12,90"]):
        if event.kind == "route":
            print(f"prompt {event.sequence}: H = {event.entropy:.3f} -> {event.model}")
        if event.result is not None:
            trace = event.result.trace
            print(
                f"prompt {event.sequence}: {len(trace.steps)} steps,"
                f" {trace.large_step_share:.0%} by the large model, answer {event.result.answer!r},"
                f" budgets {trace.think_limit} + {trace.answer_limit} tokens"
            )


if __name__ == "__main__":
    main()
