"""A tiny encoder with the tokenizer of MiniLM."""

import pytest
import torch

from domains.nlp.networks.text_embedder import TextEmbedder

TINY = {
    **{"model_type": "bert", "vocab_size": 30522, "hidden_size": 16, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64},
}


@pytest.fixture
def tiny_embedder() -> TextEmbedder:
    """Two layers, 16 wide, random weights."""
    torch.manual_seed(0)
    return TextEmbedder(TINY).eval()


@pytest.fixture
def collection(tmp_path):
    """A BEIR folder of six documents with titles, and three questions of the test."""
    animals = ["cat", "dog", "horse", "wren", "salmon", "newt"]
    documents = [
        f'{{"_id": "d{n}", "title": "the {a}", "text": "the {a} is an animal; number {n}"}}'
        for n, a in enumerate(animals)
    ]
    questions = [f'{{"_id": "q{n}", "text": "which is the {animals[n]}?"}}' for n in range(3)]
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("\n".join(documents) + "\n")
    (folder / "queries.jsonl").write_text("\n".join(questions) + "\n")
    rows = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(3)), "q0\td5\t2"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")
    return folder
