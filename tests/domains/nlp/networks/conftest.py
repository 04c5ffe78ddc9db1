"""Small configurations of the architectures that transformers knows."""

import pytest

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
OTHER_PAD = {**SIZES, "pad_token_id": 1}
MODERN = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "pad_token_id": 0}
ARCHITECTURES = {
    "bert": {**SIZES, "type_vocab_size": 2},
    "roberta": {**OTHER_PAD, "type_vocab_size": 1},
    "distilbert": {"vocab_size": 60, "max_position_embeddings": 40, **DISTILBERT},
    "electra": {**SIZES, "embedding_size": 8, "type_vocab_size": 2},
    "deberta-v2": {**SIZES, **DEBERTA},
    "modernbert": {**SIZES, **MODERN, "local_attention": 8, "global_attn_every_n_layers": 2},
    "albert": {**SIZES, "embedding_size": 8, "type_vocab_size": 2},
    "mpnet": {**OTHER_PAD},
    "gpt2": {"vocab_size": 60, **GPT2, "bos_token_id": 1, "eos_token_id": 1},
    "qwen2": {**SIZES, "num_key_value_heads": 1, "pad_token_id": None, "eos_token_id": [2, 3]},
}


@pytest.fixture(params=ARCHITECTURES)
def config(request):
    """A small configuration of each architecture."""
    pytest.importorskip("transformers")
    return {"model_type": request.param, **ARCHITECTURES[request.param]}
