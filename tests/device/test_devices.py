"""Which device a pair is served on."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

import glimprouter as gr
import hf_pairs
from glimprouter.hf import RoutedModel
from glimprouter.hf.pair.devices import choose_devices

pytestmark = pytest.mark.device

KNOWN = gr.build_info()["devices"]
ON_CPU = {"small": "cpu", "large": "cpu"}


def models(small: str, large: str) -> dict[str, Any]:
    """Stand-ins: only the place counts."""
    return {"small": SimpleNamespace(device=small), "large": SimpleNamespace(device=large)}


def test_where_the_models_are() -> None:
    assert choose_devices(None, models("cpu", "cpu")) == ON_CPU
    assert choose_devices("cpu", models("cpu", "cpu")) == ON_CPU
    for device in KNOWN:
        if device.startswith("cuda"):
            there = {"small": device, "large": device}
            assert choose_devices(None, models(device, device)) == there
            mixed = {"small": "cpu", "large": device}
            assert choose_devices(None, models("cpu", device)) == mixed
            assert choose_devices(mixed, models("cpu", device)) == mixed
            with pytest.raises(ValueError, match="needs the models there"):
                choose_devices(mixed, models(device, device))


@pytest.mark.parametrize("places", [("xpu:0", "xpu:0"), ("cpu", "xpu:0")])
def test_logits_are_never_copied_silently(places: tuple[str, str]) -> None:
    with pytest.warns(RuntimeWarning, match="logits are copied to the CPU after every"):
        assert choose_devices(None, models(*places)) == ON_CPU
    assert choose_devices("cpu", models(*places)) == ON_CPU


def test_the_warning_names_the_line_that_makes_the_pair() -> None:
    pair = hf_pairs.random_pair("qwen3")
    elsewhere = copy.deepcopy(pair.small).to("meta")
    with (
        pytest.warns(RuntimeWarning, match="logits are copied") as caught,
        pytest.raises(ValueError, match=r"cannot be served by gathering: .*meta tensors"),
    ):
        RoutedModel(elsewhere, elsewhere, pair.tokenizer, engine="gather")
    assert [warning.filename for warning in caught] == [__file__]


def test_unknown_devices_are_refused() -> None:
    pair = hf_pairs.random_pair("qwen3")
    with pytest.raises(ValueError, match=r"device must be one of \['cpu'.*got 'xpu:0'"):
        RoutedModel(pair.small, pair.large, pair.tokenizer, device="xpu:0")


def test_graphs_need_pages_on_a_device() -> None:
    pair = hf_pairs.random_pair("qwen3")
    arguments = pair.small, pair.large, pair.tokenizer
    assert RoutedModel(*arguments).execution == "eager"
    with pytest.raises(ValueError, match=r"execution=\"graphs\" needs .* runs on 'paged' on cpu"):
        RoutedModel(*arguments, execution="graphs")
    with pytest.raises(ValueError, match=r"execution must be one of .* got 'graph'"):
        RoutedModel(*arguments, execution="graph")  # type: ignore[arg-type]


def test_graph_tables_are_for_pages_on_a_device() -> None:
    layout = gr.KvLayout(num_layers=1, num_kv_heads=1, head_dim=16, page_size=8, dtype="float32")
    pool = gr.PagePool([layout], 8 * layout.page_bytes, layout.page_bytes)
    with pytest.raises(ValueError, match="this pool is on the CPU"):
        gr._C.GraphTables.words(pool, 0, 1, 1, 1, 1, 1, 1)
