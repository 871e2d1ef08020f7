"""Families of transformers at toy size, from their own configurations; random weights, fp32."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import hf_pairs

# For every family that has an option of this name.
_COMMON: dict[str, Any] = {
    "vocab_size": hf_pairs.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "sliding_window": 24,
    "attention_chunk_size": 24,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
# By the model type of transformers.
FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": {"head_dim": 16},
    "apertus": {},
    "arcee": {},
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "bloom": {"n_head": 4, "n_layer": 2},
    "cohere": {},
    "cohere2": {},
    "cohere2_moe": {},
    "cwm": {"head_dim": 16, "bos_token_id": 1, "eos_token_id": 2},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v4": {},
    "diffllama": {},
    "doge": {},
    "dots1": {"n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "ernie4_5": {"head_dim": 16},
    "ernie4_5_moe": {},
    "exaone4": {},
    "exaone_moe": {},
    "falcon": {},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 128, "head_dim": 16},
    "falcon_mamba": {"state_size": 8},
    "flex_olmo": {},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma4_text": {
        "head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "per_layer_config": {f"{layer:02}": {"head_dim": 32} for layer in (1, 3, 5)},
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": hf_pairs.VOCABULARY,
        "num_hidden_layers": 6,
    },
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "glm4_moe": {"head_dim": 16},
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": {
        **_LATENT,
        "index_topk": 32,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "n_shared_experts": 1,
    },
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 512},
    "gpt_neox": {},
    "gpt_oss": {"head_dim": 16},
    "granite": {},
    "granitemoe": {},
    "granitemoehybrid": {
        **_MAMBA,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "shared_intermediate_size": 64,
    },
    "helium": {"head_dim": 16},
    "hrm_text": {},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {
        **_LATENT,
        "q_lora_rank": None,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "num_experts_per_token": 2,
        "pad_token_id": 0,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "llama": {},
    "llama4_text": {
        "head_dim": 16,
        "intermediate_size_mlp": 96,
        "floor_scale": 16,
    },
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 16, "head_dim": 16, "num_heads": 8, "n_groups": 1, "chunk_size": 16},
    "mimo_v2_flash": {},
    "minicpm3": _LATENT,
    "minimax": {"head_dim": 16},
    "minimax_m2": {"head_dim": 16},
    "minimax_m3_vl_text": {
        "head_dim": 16,
        "rotary_dim": 8,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_block_size": 8,
        "index_topk_blocks": 4,
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "dense_intermediate_size": 96,
        "shared_intermediate_size": 32,
    },
    "ministral": {"head_dim": 16},
    "ministral3": {},
    "mistral": {"head_dim": 16},
    "mixtral": {"head_dim": 16},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {
        "hybrid_override_pattern": "M*M-",
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "chunk_size": 16,
        "head_dim": 16,
    },
    "olmo2": {},
    "olmo3": {},
    "olmo_hybrid": {},
    "olmoe": {},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {"head_dim": 16},
    "qwen3_5_moe_text": {**_LINEAR, "head_dim": 16},
    "qwen3_5_text": {**_LINEAR, "head_dim": 16},
    "qwen3_moe": {"head_dim": 16},
    "qwen3_next": {**_LINEAR, "head_dim": 16},
    "qwen4_exp_text": {
        **_LINEAR,
        "head_dim": 16,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 32,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 16,
        "ple_embed_dim": 64,
    },
    "recurrent_gemma": {"head_dim": 16, "attention_window_size": 24},
    "rwkv": {"attention_hidden_size": 64},
    "seed_oss": {"head_dim": 16},
    "smollm3": {},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {},
    "youtu": _LATENT,
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "num_key_value_heads": 4,
        "mamba_d_state": 16,
        "chunk_size": 16,
        "adapter_rank": 8,
    },
}

# Families that no engine can serve, and why.
REFUSED = {"recurrent_gemma": "its layers keep the state of one sequence in themselves"}


def config_of(name: str, **options: Any) -> Any:
    """The configuration of a family."""
    known = AutoConfig.for_model(name)
    common = {key: value for key, value in _COMMON.items() if hasattr(type(known), key)}
    common |= {key: value for key, value in _COMMON.items() if key in vars(known)}
    return AutoConfig.for_model(name, **{**common, **FAMILIES[name], **options})


def build(name: str, *, seed: int = 1, **options: Any) -> Any:
    """A model of a family in evaluation mode, whose logits depend on what came before."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config_of(name, **options)).eval()
