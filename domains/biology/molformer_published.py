"""The options and weights of published GP-MoLFormers and MoLFormers, and our names for them.

There are two forms: that of the hub of Hugging Face, and that of the first published code.
"""

from collections.abc import Mapping
from typing import Any

_ARGUMENTS = {
    "vocabulary": ("vocab_size", "vocab", "n_vocab"),
    "width": ("hidden_size", "d", "n_embd"),
    "depth": ("num_hidden_layers", "layers", "n_layer"),
    "heads": ("num_attention_heads", "heads", "n_head"),
    "inner": ("intermediate_size", "ffn"),
    "features": ("num_random_features", "num_feats"),
    "positions": ("max_position_embeddings",),
    "dropout": ("hidden_dropout_prob",),
    "embedding_dropout": ("embedding_dropout_prob", "d_dropout"),
    "norm_eps": ("layer_norm_eps", "ln_eps"),
    "attention_eps": ("linear_attention_eps", "attn_eps"),
    "padding": ("pad_token_id",),
    "causal": ("causal",),
}
"""Our arguments, and what Hugging Face and the first code call them."""
_NEEDED = ("vocabulary", "width", "depth", "heads")
_FIXED = {"hidden_act": "gelu", "feature_map_kernel": "relu", "tie_word_embeddings": False}
_OPTIONS = """
    architectures auto_map bos_token_id eos_token_id model_type torch_dtype dtype
    transformers_version initializer_range deterministic_eval use_cache is_decoder
    classifier_dropout_prob classifier_skip_connection num_labels id2label label2id
    q_dropout n_batch max_len lr_start lr_multiplier seed
"""  # they change no network
_UNUSED = frozenset(f"{_OPTIONS} B L lengths salt".split())
HUGGING_FACE = (
    (r"^tokens\.", "molformer.embeddings.word_embeddings."),
    (r"^norm\.", "molformer.LayerNorm."),
    (r"^head\.(dense|norm)\.", r"lm_head.transform.\1."),
    (r"^head\.score\.", "lm_head.decoder."),
    (r"transform\.norm\.", "transform.LayerNorm."),
    (r"^layers\.", "molformer.encoder.layer."),
    (r"\.attention\.(query|key|value)\.", r".attention.self.\1."),
    (r"\.attention\.directions$", ".attention.self.feature_map.weight"),
    (r"\.attention\.out\.", ".attention.output.dense."),
    (r"\.norm_attention\.", ".attention.output.LayerNorm."),
    (r"\.expand\.", ".intermediate.dense."),
    (r"\.contract\.", ".output.dense."),
    (r"\.norm_inner\.", ".output.LayerNorm."),
)
FIRST = (
    (r"^tokens\.", "tok_emb."),
    (r"^norm\.", "blocks.norm."),
    (r"^head\.dense\.", "lang_model.embed."),
    (r"^head\.norm\.", "lang_model.ln_f."),
    (r"^head\.score\.", "lang_model.head."),
    (r"^layers\.", "blocks.layers."),
    (r"\.attention\.(query|key|value|out)\.", r".attention.\1_projection."),
    (r"\.attention\.directions$", ".attention.inner_attention.feature_map.omega"),
    (r"\.norm_attention\.", ".norm1."),
    (r"\.expand\.", ".linear1."),
    (r"\.contract\.", ".linear2."),
    (r"\.norm_inner\.", ".norm2."),
)


def arguments(config: Mapping[str, Any], first: bool) -> dict[str, Any]:
    """Give a published configuration our names.

    Args:
        config: the options, by either kind of names.
        first: whether the weights are as first published, where norms and attention have another
            smallest number.

    Raises:
        ValueError: listing all that is missing, unknown or of another kind.
    """
    ours = {name: argument for argument, names in _ARGUMENTS.items() for name in names}
    found = {ours[name]: config[name] for name in config if name in ours}
    faults = [f"missing {_ARGUMENTS[name][0]}" for name in _NEEDED if name not in found]
    faults += [f"unknown {name}" for name in config if name not in {*ours, *_FIXED, *_UNUSED}]
    faults += [
        f"{name}={config[name]!r}, needed {value!r}"
        for name, value in _FIXED.items()
        if config.get(name, value) != value
    ]
    if faults:
        raise ValueError(f"GPMoLFormer config: {'; '.join(faults)}")
    masked = any("MaskedLM" in name for name in config.get("architectures") or ())
    defaults = {"inner": found["width"], "causal": not masked}
    defaults |= {"norm_eps": 1e-5, "shifted": True} if first else {}
    return {**defaults, **found}
