"""A threshold from a wanted share of steps by the large model."""

from __future__ import annotations

import glimprouter as gr
from glimprouter.demo_pair import large_path, small_path
from glimprouter.demo_pair.task import held_out_problems
from glimprouter.hf import RoutedModel


def main() -> None:
    """Finds a threshold on half of some prompts, and verifies it on the other half."""
    config = gr.RouterConfig(temperature=0.0, max_step_tokens=64, max_think_tokens=320)
    model = RoutedModel.from_pretrained(small_path(), large_path(), dtype="float32", config=config)
    prompts = [problem.prompt for problem in held_out_problems(24, seed=1)]
    found = gr.calibrate(model, prompts, large_share=0.25)
    print(
        f"threshold {found.threshold:.4f} nats: {found.measured_share:.0%} of the steps by the"
        f" large model on other prompts (95 %: {found.low:.0%} to {found.high:.0%})"
    )


if __name__ == "__main__":
    main()
