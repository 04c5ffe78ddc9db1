"""The names and sizes of a published Mask2Former, as transformers writes them, in our terms."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from core.networks.hugging_face import OF_A_FILE
from core.published import renamed

UNUSED = re.compile(r"^criterion\.|relative_position_index$|\.encoder\.(swin\.)?layernorm\.")
"""Entries that no output depends on."""
_PIXEL = r"^(?:model\.)?pixel_level_module\."
_QUERY = r"^(?:model\.)?transformer_module\."
NAMES = (
    (rf"{_PIXEL}encoder\.(?=embeddings\.|encoder\.layers\.)", "body.model.swin."),
    (rf"{_PIXEL}encoder\.", "body.model."),
    (r"\.attention\.self\.relative_", r".attention.relative_position_bias.relative_"),
    (r"\.attention\.self\.([qkv])[a-z]+\.", r".attention.\1_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (rf"{_PIXEL}decoder\.input_projections\.", "pixel_decoder.projections."),
    (rf"{_PIXEL}decoder\.level_embed$", "pixel_decoder.level_embed.weight"),
    (rf"{_PIXEL}decoder\.adapter_1\.", "pixel_decoder.lateral."),
    (rf"{_PIXEL}decoder\.layer_1\.", "pixel_decoder.output."),
    (rf"{_PIXEL}decoder\.mask_projection\.", "pixel_decoder.mask_features."),
    (rf"{_PIXEL}decoder\.encoder\.layers\.", "pixel_decoder.layers."),
    (r"^(pixel_decoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"^(pixel_decoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.attention_norm."),
    (rf"{_QUERY}queries_features\.", "decoder.query_features."),
    (rf"{_QUERY}queries_embedder\.", "decoder.query_positions."),
    (rf"{_QUERY}level_embed\.", "decoder.level_embed."),
    (rf"{_QUERY}decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.", r"decoder.mask_embed.\1."),
    (rf"{_QUERY}decoder\.layernorm\.", "decoder.norm."),
    (rf"{_QUERY}decoder\.layers\.", "decoder.layers."),
    (r"^class_predictor\.", "decoder.class_embed."),
    (r"^(decoder\.layers\.\d+)\.(self|cross)_attn\.", r"\1.\2_attention."),
    (r"^(decoder\.layers\.\d+)\.(self|cross)_attn_layer_norm\.", r"\1.\2_norm."),
    (r"^((?:pixel_)?decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm."),
    (r"^((?:pixel_)?decoder\.layers\.\d+)\.fc1\.", r"\1.expand."),
    (r"^((?:pixel_)?decoder\.layers\.\d+)\.fc2\.", r"\1.contract."),
)
"""Patterns of the published names, of files and of modules, and what replaces them, in order."""

_SHORT = {
    "Q": "queries",
    "K": "classes",
    "d": "width",
    "nheads": "heads",
    "encoder_layers": "encoder_layers",
    "enc_ffn": "encoder_feedforward",
    "dec_ffn": "decoder_feedforward",
}
_SHORT_SWIN = {
    "image_size_cfg": "image_size",
    "embed_dim": "embed_dim",
    "depths": "depths",
    "heads": "num_heads",
    "window": "window_size",
    "mlp_ratio": "mlp_ratio",
}
_INPUTS = ("points", "B", "H", "W", "n_targets", "salt")
_LONG = {
    "hidden_dim": "width",
    "num_queries": "queries",
    "num_attention_heads": "heads",
    "encoder_layers": "encoder_layers",
    "encoder_feedforward_dim": "encoder_feedforward",
    "dim_feedforward": "decoder_feedforward",
}
_FIXED = {
    "activation_function": "relu",
    "pre_norm": False,
    "enforce_input_projection": False,
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
}


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of our network.

    Args:
        config: a ``config.json`` of ``model_type`` mask2former; or its sizes in short.

    Raises:
        ValueError: listing keys that are unknown, missing, or ask for what is not built.
    """
    return _of_file(config) if "model_type" in config else _in_short(config)


def tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of transformers our names, without those that no output depends on.

    Those that have our names keep them.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if UNUSED.search(name):
            continue
        own = renamed(name, NAMES)
        whole, packed, kind = own.partition(".in_proj_")
        if packed:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            found |= {f"{whole}.{letter}_proj.{kind}": part for letter, part in parts}
        else:
            found[own] = tensor
    return found


def _in_short(config: Mapping[str, Any]) -> dict[str, Any]:
    known = {*_SHORT, *_SHORT_SWIN, *_INPUTS, "decoder_layers_hf"}
    faults = [f"missing {key}" for key in known.difference(_INPUTS) if key not in config]
    faults += [f"unknown {key}" for key in config if key not in known]
    if faults:
        raise ValueError(f"Mask2Former config: {'; '.join(sorted(faults))}")
    swin = {ours: config[theirs] for theirs, ours in _SHORT_SWIN.items()}
    sizes = {ours: config[theirs] for theirs, ours in _SHORT.items()}
    layers = config["decoder_layers_hf"] - 1  # which counts the masks before the first layer
    return {**sizes, "decoder_layers": layers, "backbone": {"model_type": "swin", **swin}}


def _of_file(config: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import Mask2FormerConfig

    if config["model_type"] != "mask2former":
        raise ValueError(f"Mask2Former config: model_type={config['model_type']!r}")
    rest = {key: value for key, value in config.items() if key != "model_type"}
    whole = Mask2FormerConfig(**rest).to_dict()
    faults = [
        f"{key}={whole[key]!r} must be {wanted!r}"
        for key, wanted in _FIXED.items()
        if (list(whole[key]) if isinstance(wanted, list) else whole[key]) != wanted
    ]
    faults += [
        f"{key}={whole[key]} must equal hidden_dim={whole['hidden_dim']}"
        for key in ("feature_size", "mask_feature_size")
        if whole[key] != whole["hidden_dim"]
    ]
    if faults:
        raise ValueError(f"Mask2Former config: {'; '.join(faults)}")
    sizes = {ours: whole[theirs] for theirs, ours in _LONG.items()}
    backbone = {k: v for k, v in whole["backbone_config"].items() if k not in OF_A_FILE}
    return {
        **sizes,
        "classes": len(whole["id2label"]),
        "decoder_layers": whole["decoder_layers"] - 1,
        "backbone": backbone,
    }
