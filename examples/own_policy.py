"""A rule of one's own for who writes a step, beside the threshold and a coin."""

from __future__ import annotations

import glimprouter as gr
from glimprouter.config import ModelName
from glimprouter.demo_pair import RECOMMENDED_THRESHOLD, large_path, small_path
from glimprouter.demo_pair.task import held_out_problems
from glimprouter.hf import RoutedModel
from glimprouter.policies import EntropyThreshold, Glimpse, Policy, RandomShare


class LargeBegins(Policy):
    """The large model sets out; then it writes where two tokens are nearly as likely."""

    signals = gr.OutputField.MARGIN

    def before(self, glimpse: Glimpse) -> ModelName:
        """By the step's index and the margin."""
        return "large" if glimpse.step == 0 or glimpse.margin < 0.5 else "small"


def main() -> None:
    """Runs some problems by each rule and prints what came of it."""
    config = gr.RouterConfig(temperature=0.0)
    model = RoutedModel.from_pretrained(
        small_path(), large_path(), dtype="float32", config=config, max_sequences=20, drafts=0
    )
    problems = held_out_problems(20, seed=4)
    for policy in (EntropyThreshold(RECOMMENDED_THRESHOLD), RandomShare(0.2), LargeBegins()):
        model.policy = policy
        results = model.generate([problem.prompt for problem in problems])
        steps = [step for result in results for step in result.trace.steps]
        large = sum(step.model == "large" for step in steps) / len(steps)
        right = sum(
            result.answer == problem.answer
            for result, problem in zip(results, problems, strict=True)
        )
        print(f"{policy.name:16} {large:4.0%} of the steps by the large model, {right} of 20 right")


if __name__ == "__main__":
    main()
