"""Vectors of texts here and in sentence-transformers: the same weights, texts and most tokens.

``python benchmarks/nlp_encode.py [--output FOLDER]`` encodes 256 abstracts of Cranfield by MiniLM,
256 tokens at most, tokenising included. Both sort the texts by length, ours by tokens and theirs by
characters. Ours is also measured in bfloat16 where this machine is faster with it, as the command
chooses by ``--precision auto``; theirs as it is set up, and with its weights made bfloat16 by hand.
The library comes with ``pip install sentence-transformers``; without it nothing is measured.
"""

import importlib.util
from collections.abc import Callable
from functools import partial

import measure
import torch
from measure import Row
from torch import Tensor

from core.openers import read_json
from core.precision import faster_precision
from core.tensor_files import read_tensors
from core.warm_start import warm_start
from data import find_model
from domains.nlp.embedding import embed
from domains.nlp.encoding import encode
from domains.nlp.networks.text_embedder import TextEmbedder
from domains.nlp.retrieval_parts import read_documents
from domains.nlp.tokenizer import load_tokenizer

TEXTS = 256
LENGTH = 256
SAME = 0.9999  # least cosine of a text's two vectors


@torch.inference_mode()
def ours(network: TextEmbedder, texts: list[str], bf16: bool) -> Tensor:
    tokenizer = load_tokenizer("minilm")
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return embed(network, encode(tokenizer, texts, None, LENGTH), tokenizer.pad_token_id)


def theirs(texts: list[str], bf16: bool) -> Callable[[], Tensor]:
    """Set up the library in one precision."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(find_model("minilm")), device="cpu")
    model.max_seq_length = LENGTH
    model = model.bfloat16() if bf16 else model
    return lambda: model.encode(texts, convert_to_tensor=True, show_progress_bar=False).float()


def minilm() -> list[Row]:
    """Hold the vectors to be equal, then measure."""
    if importlib.util.find_spec("sentence_transformers") is None:
        print("sentence-transformers skipped: pip install sentence-transformers")
        return []
    folder = find_model("minilm")
    network = TextEmbedder(read_json(folder / "config.json")).eval()
    warm_start(network, read_tensors(folder)[0], "minilm")
    texts = read_documents("cranfield").whole()[:TEXTS]
    half = faster_precision() == "bf16-mixed"
    sides = {"ours": partial(ours, network, texts, False), "theirs": theirs(texts, False)}
    if half:
        sides |= {"ours bf16": partial(ours, network, texts, True), "bf16": theirs(texts, True)}
    vectors = {name: side() for name, side in sides.items()}
    alike = {
        n: float(torch.cosine_similarity(v, vectors["theirs"]).min()) for n, v in vectors.items()
    }
    assert min(alike.values()) >= SAME, alike
    seconds = measure.alternate(sides, 2)

    def row(name: str, mine: str, other: str, least: float | None) -> Row:
        note = f"cosine at least {alike[mine]:.6f}"
        library = "sentence-transformers" + (" in bfloat16" if other == "bf16" else "")
        return Row(name, library, (seconds[mine], seconds[other]), least, note)

    rows = [row(f"MiniLM, {TEXTS} texts", "ours", "theirs", 1.25)]
    if half:
        name = f"MiniLM in bfloat16, {TEXTS} texts"
        rows += [row(name, "ours bf16", "theirs", 2.0), row(name, "ours bf16", "bf16", None)]
    return rows


if __name__ == "__main__":
    measure.main({"minilm": minilm}, "nlp_encode.png")
