"""That the tests of pairs run with the engine that their names say."""

from __future__ import annotations

import pytest

import hf_pairs
import hf_translated

pytestmark = pytest.mark.both_engines


def test_the_engine_is_the_one_under_test(request: pytest.FixtureRequest) -> None:
    named = request.node.callspec.params["engine_under_test"]
    assert hf_pairs.random_pair("qwen3").routed().engine == named
    assert hf_translated.routed("gpt2", "qwen").engine == named
