"""A pair of one base model: with an adapter and without, or with two, on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import glimprouter as gr
import hf_pairs
from gguf_file import toy_model
from glimprouter.hf import RoutedModel
from glimprouter.hf.pair import adapters

IDS = list(range(40, 52))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, two adapters of it, another base, and an adapter that names the wrong one."""
    root = tmp_path_factory.mktemp("adapters")
    places = {name: root / name for name in ("base", "other", "first", "second", "stranger")}
    for name, layers in (("base", 2), ("other", 3)):
        toy_model(1, layers).save_pretrained(places[name])
        hf_pairs.TOKENIZER.save_pretrained(places[name])
    for seed, (name, base) in enumerate(
        (("first", "base"), ("second", "base"), ("stranger", "other"))
    ):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(places[base])
        config = LoraConfig(
            r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
        )
        get_peft_model(model, config).save_pretrained(places[name])
    described = places["stranger"] / "adapter_config.json"
    wrong = {**json.loads(described.read_text()), "base_model_name_or_path": str(places["base"])}
    described.write_text(json.dumps(wrong))
    return places


def loaded(small: Path, large: Path, **options: Any) -> RoutedModel:
    limits = {"max_think_tokens": 24, "max_answer_tokens": 0}
    config = gr.RouterConfig(temperature=0.0, repetition_guard=False, **limits)
    return RoutedModel.from_pretrained(
        small, large, config=config, eos_token_ids=[], thinking=None, engine="paged", **options
    )


def by_transformers(source: Path) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(source)
    prompt = torch.tensor([IDS])
    stop = {"max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), **stop)
    return [int(token) for token in out[0, len(IDS) :]]


def weights(model: Any) -> set[int]:
    """Where the weights of the base lie."""
    return {p.data_ptr() for name, p in model.named_parameters() if "lora" not in name}


@pytest.mark.parametrize(
    ("small", "large"), [("base", "first"), ("first", "base"), ("first", "second")]
)
def test_one_base_is_loaded_once(folders: dict[str, Path], small: str, large: str) -> None:
    """And each model writes what transformers writes with it alone."""
    pair = loaded(folders[small], folders[large])
    assert weights(pair.small) == weights(pair.large)
    texts = []
    for name, source in (("small", small), ("large", large)):
        want = by_transformers(folders[source])
        (result,) = pair.generate([IDS], route=name)
        assert result.token_ids[: len(want)] == want
        texts.append(want)
    assert texts[0] != texts[1], "the adapter changes what is written"


def test_other_options_or_another_base_load_twice(folders: dict[str, Path]) -> None:
    dtypes = {"small": torch.float32, "large": torch.bfloat16}
    pair = loaded(folders["base"], folders["first"], dtype=dtypes)
    assert not weights(pair.small) & weights(pair.large)
    assert pair.large.dtype == torch.bfloat16
    pair = loaded(folders["other"], folders["first"])
    assert not weights(pair.small) & weights(pair.large)


def test_an_adapter_may_have_its_own_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    assert adapters.tokenizer_source(folders["first"], "base") == "base"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert adapters.tokenizer_source(tmp_path, "base") == tmp_path


def test_what_cannot_be_loaded_is_refused(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"stranger does not fit its base"):
        loaded(folders["base"], folders["stranger"])
    described = tmp_path / "adapter_config.json"
    described.write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ValueError, match="names no base_model_name_or_path"):
        loaded(folders["base"], tmp_path)
    described.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "nowhere")}))
    with pytest.raises((OSError, ValueError), match="nowhere"):
        loaded(folders["base"], tmp_path)
    monkeypatch.setattr(adapters, "is_peft_available", lambda: False)
    with pytest.raises(ImportError, match="install the package peft"):
        loaded(folders["base"], folders["first"])
