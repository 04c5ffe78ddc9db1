"""Sizes of small networks with exits, and a judged batch, for several tests."""

from typing import NamedTuple

from torch import Tensor

DEPTH = 4
BERT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
HEADS = [{"name": "", "kind": "single", "labels": ["a", "b", "c"]}]


class Judged(NamedTuple):
    loss: Tensor
    prediction: Tensor
    target: Tensor
