"""The fused operations inside torch.compile: entropy and sampling as operations of torch."""

from __future__ import annotations

import torch

import glimprouter.torch  # noqa: F401 - registers torch.ops.glimprouter


def head(
    hidden: torch.Tensor, weight: torch.Tensor, substream: torch.Tensor, position: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, their entropies, and a token of each row, in one graph."""
    logits = hidden @ weight.T
    entropy = torch.ops.glimprouter.glimpse(logits)[0]
    token = torch.ops.glimprouter.sample(logits, substream, position, 7, 0.6, 0.95)
    return entropy, token


def main() -> None:
    """Compares the compiled function with the plain one."""
    torch.manual_seed(0)
    arguments = (
        torch.randn(4, 64),
        torch.randn(5000, 64) / 8,
        torch.arange(4),
        torch.full((4,), 12),
    )
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    entropy, token = compiled(*arguments)
    assert torch.equal(token, head(*arguments)[1])
    print("entropies", [round(value, 3) for value in entropy.tolist()], "tokens", token.tolist())


if __name__ == "__main__":
    main()
