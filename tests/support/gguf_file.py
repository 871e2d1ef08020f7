"""A GGUF file of a toy model: the real format, written as converters write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import hf_pairs

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # types of tokens in the format


def toy_model(seed: int, layers: int = 2) -> Any:
    """A Qwen 2 with random weights, as wide as the tokenizer."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=hf_pairs.VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=hf_pairs.EOS,
        pad_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


def write_gguf(model: Any, path: Path, chat_template: str | None = None) -> None:
    """Weights in fp32, configuration and the tokenizer of the toy pairs."""
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("toy")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own is not None, name
        writer.add_tensor(own, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, chat_template: str | None) -> None:
    tokenizer = hf_pairs.TOKENIZER
    tokens = tokenizer.convert_ids_to_tokens(list(range(hf_pairs.VOCABULARY)))
    added = tokenizer.added_tokens_decoder
    special = {
        index: _CONTROL if token.special else _USER_DEFINED for index, token in added.items()
    }
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([special.get(index, _NORMAL) for index in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(hf_pairs.EOS)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
