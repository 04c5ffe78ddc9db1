"""Answers on a user's own files, the cache of vectors, and other libraries that load the model."""

import numpy as np
import pandas as pd
import pytest
import torch

from core.errors import UserError
from core.pretrained import from_pretrained, save_pretrained
from domains.nlp import retrieval_files
from domains.nlp.embedding import embed
from domains.nlp.encoding import encode
from domains.nlp.retrieval_files import RetrievalFiles
from domains.nlp.tokenizer import load_tokenizer


@pytest.fixture
def files(collection):
    return RetrievalFiles(
        *(str(collection), "", "", 32, "truncate"),
        tokenizer=load_tokenizer("minilm"),
        **{"pooling": "mean", "normalise": True, "width": 16},
    )


@pytest.fixture
def asked(tmp_path):
    path = tmp_path / "asked.csv"
    path.write_text('id,text\nx,"the wren, number 3"\nempty,\ny,number 4\n')
    return path


def test_hits_are_written_with_ranks_scores_and_snippets(files, tiny_embedder, asked, tmp_path):
    told = files.predict_file(tiny_embedder, asked, tmp_path / "hits.csv", top="2", hybrid="yes")
    assert told.endswith(
        "2 questions among 6 documents of " + files.corpus + "; 1 empty questions have no answer"
    )
    found = pd.read_csv(tmp_path / "hits.csv")
    assert list(found.columns) == ["query", "rank", "document", "score", "snippet"]
    assert list(found["query"]) == ["x", "x", "y", "y"]
    assert list(found["rank"]) == [1, 2, 1, 2]
    assert found["document"][0] == "d3"
    assert found["snippet"][0] == "the wren the wren is an animal; number 3"
    assert found["score"][0] > found["score"][1]


def test_scores_are_the_products_of_the_vectors(files, tiny_embedder, asked, tmp_path):
    files.predict_file(tiny_embedder, asked, tmp_path / "run.trec", top="6")
    rows = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert len(rows) == 12
    assert rows[0][:2] == ["x", "Q0"]
    corpus = [f"the {a} the {a} is an animal; number {n}" for n, a in enumerate(["cat", "dog"])]
    encoded = encode(files.tokenizer, [*corpus, "the wren, number 3"], max_length=32)
    with torch.no_grad():
        vectors = embed(tiny_embedder, encoded, 0)
    own = {row[2]: float(row[4]) for row in rows if row[0] == "x"}
    for number in range(2):  # vectors may be made in bfloat16
        assert own[f"d{number}"] == pytest.approx(float(vectors[2] @ vectors[number]), abs=0.02)


def test_vectors_of_a_corpus_are_made_once(files, tiny_embedder, asked, tmp_path, monkeypatch):
    files.predict_file(tiny_embedder, asked, tmp_path / "a.csv")
    counts = []

    def counted(network, texts, *rest):
        counts.append(len(texts))
        return embed(network, texts, *rest)

    monkeypatch.setattr(retrieval_files, "embed", counted)
    files.predict_file(tiny_embedder, asked, tmp_path / "b.csv")
    assert counts == [2]
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    with torch.no_grad():
        next(tiny_embedder.parameters()).add_(0.1)
    files.predict_file(tiny_embedder, asked, tmp_path / "c.csv")
    assert counts == [2, 6, 2]


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_vectors_alone(files, tiny_embedder, asked, tmp_path, suffix):
    path = tmp_path / f"v.{suffix}"
    told = files.predict_file(tiny_embedder, asked, path, vectors="question")
    assert told.endswith("3 vectors of 16 numbers")
    found = np.load(path) if suffix == "npy" else np.stack(pd.read_parquet(path)["vector"])
    assert found.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"top": "0"}, "--top=0"),
        ({"hybrid": "maybe"}, "--hybrid=maybe"),
        ({"vectors": "all"}, "--vectors=all"),
        ({"vectors": "document"}, "vectors are written as .npy or .parquet"),
        ({"corpus": "gone.jsonl"}, "gone.jsonl: no such file"),
    ],
)
def test_wrong_options_are_named(files, tiny_embedder, asked, tmp_path, options, told):
    with pytest.raises(UserError) as fault:
        files.predict_file(tiny_embedder, asked, tmp_path / "h.csv", **options)
    assert told in str(fault.value)


def test_wrong_files_are_named(files, tiny_embedder, tmp_path):
    (tmp_path / "q.csv").write_text("id,text\nx,\n")
    with pytest.raises(UserError, match=r"q\.csv: every question is empty"):
        files.predict_file(tiny_embedder, tmp_path / "q.csv", tmp_path / "h.csv")
    with pytest.raises(UserError, match=r"h\.doc: name a file that ends in"):
        files.predict_file(tiny_embedder, tmp_path / "q.csv", tmp_path / "h.doc")
    (tmp_path / "w.csv").write_text("id,words\nx,y\n")
    with pytest.raises(UserError, match="no column 'text'"):
        files.predict_file(tiny_embedder, tmp_path / "w.csv", tmp_path / "h.csv")
    alone = RetrievalFiles(None, "", "", 32, "truncate", files.tokenizer)
    with pytest.raises(UserError, match="--corpus FILE is needed"):
        alone.predict_file(tiny_embedder, tmp_path / "q.csv", tmp_path / "h.csv")


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_sentence_transformers_loads_a_model_folder(
    files, tiny_embedder, tmp_path, pooling, normalise
):
    library = pytest.importorskip("sentence_transformers")
    network = type(tiny_embedder)(tiny_embedder.config, pooling, normalise).eval()
    travels = RetrievalFiles(**{**vars(files), "pooling": pooling, "normalise": normalise})
    save_pretrained(network, tmp_path / "model", preprocessing=travels)
    texts = ["a cat on a mat", "the wing of a wren " * 20, "x"]
    with torch.no_grad():
        ours = embed(network, encode(files.tokenizer, texts, max_length=32), 0)
    theirs = library.SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(texts)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-4, atol=1e-5)
    again = from_pretrained(tmp_path / "model")
    assert again.preprocessing.corpus == files.corpus
    torch.testing.assert_close(again.network.state_dict(), network.state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_minilm_gives_the_vectors_of_sentence_transformers():
    library = pytest.importorskip("sentence_transformers")
    from core.openers import read_json
    from core.tensor_files import read_tensors
    from core.warm_start import warm_start
    from data import find_model
    from domains.nlp.networks.text_embedder import TextEmbedder

    folder = find_model("minilm")
    network = TextEmbedder(read_json(folder / "config.json")).eval()
    warm_start(network, read_tensors(folder)[0], "minilm")
    texts = ["A cat sits on a mat.", "", "Stock prices fell sharply. " * 40, "x", "flow over wings"]
    with torch.no_grad():
        ours = embed(network, encode(load_tokenizer("minilm"), texts, max_length=256), 0)
    theirs = library.SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert (ours * torch.from_numpy(theirs)).sum(1).min() >= 0.9999
