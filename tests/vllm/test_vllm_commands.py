"""Documented commands go through vLLM's own parser; nothing is started."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_commands import composed, documented
from vllm_servers import set_environment

pytest.importorskip("vllm", reason="vLLM is not installed: no command was parsed")

COMMANDS = [*documented("vllm serve"), *composed("vllm serve").values()]


def parsed(words: list[str]) -> Any:
    set_environment()
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers())
    return parser.parse_args(["serve", *words])


@pytest.mark.long
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_is_vllms(words: list[str]) -> None:
    options = parsed(words)
    assert options.logits_processors == ["glimprouter.vllm:GlimpGate"]
    assert options.logprobs_mode == "processed_logits"
    assert options.model_tag.startswith("Qwen/")
    assert options.tensor_parallel_size == (1 if options.port == 8001 else 4)
    assert options.headless == (options.node_rank == 1)
    assert options.node_rank < options.nnodes
