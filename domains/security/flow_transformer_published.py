"""Published weights of FlowTransformer: Keras variables, taken by their order.

Names are not unique from one process to the next (``dense_17``), and differ with the field names of
a data set; the order is that of the network's own tensors.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ARGUMENTS = (
    *("encoding", "block", "head", "numeric", "levels", "window", "width", "layers", "inner"),
    *("heads", "mlp", "dropout", "classes"),
)
ROLE = re.compile(
    r"(?:^|/)(?:(query|key|value|attention_output)/)?"
    r"(kernel|bias|gamma|beta|embeddings)(?::\d+)?$"
)


def faults(network: nn.Module, state_dict: Mapping[str, Any]) -> list[str]:
    """List what of published weights is missing, unexpected or misshapen."""
    own = list(network.state_dict().items())
    names = [_published(network, name) for name, _ in own]
    theirs = list(state_dict)
    matcher = difflib.SequenceMatcher(
        None, [_role(name) for name in names], [_role(name) for name in theirs], autojunk=False
    )
    found = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind != "equal":
            found += [f"missing {name}" for name in names[a:b]]
            found += [f"unexpected {name}" for name in theirs[c:d]]
            continue
        for (name, tensor), given in zip(own[a:b], theirs[c:d], strict=True):
            needed, shape = _shape(network, name, tensor), tuple(state_dict[given].shape)
            pointwise = name.endswith("weight") and shape == (1, *needed)  # a convolution's
            if shape != needed and not pointwise:
                found.append(f"{given} is {shape}, needed {needed}")
    return found


def load(network: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load published weights.

    Args:
        network: a FlowTransformer.
        state_dict: tensors or arrays by their published names, in their order.

    Raises:
        ValueError: listing all entries that are missing, unexpected or of another shape.
    """
    if wrong := faults(network, state_dict):
        raise ValueError(f"FlowTransformer weights do not fit: {'; '.join(wrong)}")
    ours = {}
    for (name, own), given in zip(network.state_dict().items(), state_dict.values(), strict=True):
        tensor = torch.as_tensor(given)
        linear = own.ndim == 2 and not isinstance(_layer(network, name), nn.Embedding)
        ours[name] = tensor.reshape(own.shape[::-1]).T if linear else tensor.reshape(own.shape)
    network.load_state_dict(ours)


def _layer(network: nn.Module, name: str) -> nn.Module:
    return network.get_submodule(name.rpartition(".")[0])


def _role(name: str) -> str:
    """Give what of a name tells the place of a variable: its kind, and which map of attention."""
    found = ROLE.search(name)
    return name if found is None else "/".join(part for part in found.groups() if part)


def _shape(network: nn.Module, name: str, own: Tensor) -> tuple[int, ...]:
    """Give the published shape: maps are (in, out), and those of attention know their heads."""
    path, _, kind = name.rpartition(".")
    before, _, part = path.rpartition(".")
    if before.endswith("attention"):
        attention: Any = network.get_submodule(before)
        heads = (attention.heads, attention.size)
        if part == "out":
            return (*heads, len(own)) if kind == "weight" else (len(own),)
        return (own.shape[1], *heads) if kind == "weight" else heads
    if own.ndim == 2 and not isinstance(_layer(network, name), nn.Embedding):
        return own.shape[1], own.shape[0]
    return tuple(own.shape)


def _published(network: Any, name: str) -> str:
    """Give the name that a first network of a process has for one of our tensors."""
    path, _, kind = name.rpartition(".")
    layer = _layer(network, name)
    part, _, rest = path.partition(".")
    kinds = {"weight": "kernel"}
    if isinstance(layer, nn.LayerNorm):
        kinds = {"weight": "gamma", "bias": "beta"}
    elif isinstance(layer, nn.Embedding):
        kinds = {"weight": "embeddings"}
    leaf = kinds.get(kind, kind)
    if part == "blocks":
        number, _, inner = rest.partition(".")
        decoder = network.block in ("decoder", "gpt")
        return f"{(_decoder if decoder else _encoder)(int(number), inner)}/{leaf}"
    if part == "classifier":
        last = int(rest) == len(network.classifier) - 1
        size = f"mlp_{int(rest) // 3}_{len(layer.weight)}"  # type: ignore[arg-type]
        return f"{'binary_classification_out' if last else f'classification_{size}'}/{leaf}"
    if part == "featurewise":
        return f"featurewise_embed/{leaf}"
    field = rest.partition(".")[2]
    if leaf == "embeddings":
        return f"embedding{_numbered(int(field))}/{leaf}"
    return f"embed_{field}/{leaf}" if field else f"embed/{leaf}"


def _encoder(number: int, inner: str) -> str:
    names = {
        "norm_attention": "attention_layer_norm",
        "expand": "feed_forward_0",
        "contract": "feed_forward_1",
        "norm_inner": "feed_forward_layer_norm",
    }
    own = names.get(inner, f"multi_head_attn/{_attention(inner)}")
    return f"block_{number}_transformer_encoder/block_{number}_{own}"


def _decoder(number: int, inner: str) -> str:
    twice, block = 2 * number, f"transformer_decoder_block{_numbered(number)}"
    names = {
        "norm_attention": f"{block}/layer_normalization{_numbered(twice)}",
        "expand": f"dense{_numbered(twice)}",
        "contract": f"dense{_numbered(twice + 1)}",
        "norm_inner": f"{block}/layer_normalization{_numbered(twice + 1)}",
    }
    attention = f"{block}/multi_head_attention{_numbered(number)}/{_attention(inner)}"
    return names.get(inner, attention)


def _attention(inner: str) -> str:
    return inner.partition(".")[2].replace("out", "attention_output")


def _numbered(number: int) -> str:
    return f"_{number}" if number else ""
