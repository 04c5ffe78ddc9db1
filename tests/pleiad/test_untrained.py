"""An experiment that begins from given weights is judged by them until it has a finished run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from core.errors import UserError
from core.pretrained import save_pretrained
from domains.nlp.networks.text_embedder import TextEmbedder
from domains.nlp.retrieval_files import RetrievalFiles
from domains.nlp.tokenizer import load_tokenizer
from pleiad import command

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "pleiad"]
LONGER = ["--trainer.max_epochs=3", "--model.scheduler.max_lr=0.01"]
QUICK = [
    *("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"),
    *("--data.dataset=birds", "--data.batch_size=4", "--data.max_length=32"),
]


@pytest.fixture(autouse=True)
def _experiment(tmp_path, monkeypatch):
    """A collection, an encoder, and an experiment that begins from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLEIAD_RUN", raising=False)
    birds = ["wren", "crow", "swan", "kite", "rook", "teal", "gull", "dove", "lark", "swift"] * 3
    rows = [
        {"_id": f"d{n}", "title": f"{bird} {n}", "text": f"a {bird} is number {n} of the birds"}
        for n, bird in enumerate(birds)
    ]
    folder = Path("birds", "qrels")
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_json("birds/corpus.jsonl", orient="records", lines=True)
    asked = [{"_id": f"q{n}", "text": f"which is number {n}"} for n in range(6)]
    pd.DataFrame(asked).to_json("birds/queries.jsonl", orient="records", lines=True)
    judged = [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1} for n in range(6)]
    pd.DataFrame(judged).to_csv(folder / "test.tsv", sep="\t", index=False)
    torch.manual_seed(0)
    sizes = {"model_type": "bert", "vocab_size": 30522, "hidden_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    travels = RetrievalFiles(None, "", "", 32, "truncate", load_tokenizer("minilm"))
    save_pretrained(TextEmbedder(sizes), Path("encoder"), preprocessing=travels)
    source = Path(__file__).parents[2] / "configs" / "nlp" / "retrieve.yaml"
    text = source.read_text().replace("checkpoint: minilm", "checkpoint: encoder")
    Path("mine.yaml").write_text(text)


def printed(capsys, arguments: list[str]) -> dict[str, float]:
    capsys.readouterr()
    command.run(arguments)
    lines = capsys.readouterr().out.strip().splitlines()
    return {name: float(value) for name, value in (line.split(maxsplit=1) for line in lines)}


def test_given_weights_are_judged_until_there_is_a_finished_run(capsys):
    found = printed(capsys, ["test", "mine.yaml", *QUICK])
    assert found == printed(capsys, ["test", "mine.yaml", *QUICK, "--checkpoint=encoder"])
    assert command.run(["fit", "mine.yaml", *QUICK, "--model.scheduler.max_lr=0.01"]) == 0
    trained = printed(capsys, ["test", "mine.yaml"])
    assert trained["test/loss"] != found["test/loss"]
    assert printed(capsys, ["test", "mine.yaml", *QUICK, "--checkpoint=encoder"]) == found


def test_their_test_leaves_a_run_that_answers(capsys):
    assert command.run(["test", "mine.yaml", *QUICK, "--run=zero"]) == 0
    results = json.loads(Path("zero/results.json").read_text())
    assert {"test/ndcg@10", "test/ndcg@10_hybrid"} <= set(results["metrics"])
    assert set(results["baselines"]) == {"BM25"}
    assert results["checkpoint"]["path"] == "encoder"
    assert results["seconds"]["fit"] == 0
    assert Path("zero/pictures/questions.png").is_file()
    Path("q.txt").write_text("number 3\nnumber 4\n")
    told = ["predict", "zero", "--input=q.txt", "--output=hits.csv", "--top=3", "--hybrid=yes"]
    assert command.run(told) == 0
    assert list(pd.read_csv("hits.csv")["rank"]) == [1, 2, 3] * 2
    assert (
        command.run(["predict", "zero", "--input=q.txt", "--output=v.npy", "--vectors=question"])
        == 0
    )


@pytest.mark.slow
def test_one_and_two_processes_learn_and_judge_alike():
    found = []
    for name, more in (("one", []), ("two", ["--trainer.devices=2", "--trainer.strategy=ddp"])):
        still = ["hidden", "attention_probs"]  # no dropout: each process draws its own
        still = [f"--model.network.config.{part}_dropout_prob=0.0" for part in still]
        subprocess.run(
            [*COMMAND, "fit", "mine.yaml", *QUICK, *still, *more, *LONGER, f"--run={name}"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            check=True,
        )
        found.append(json.loads(Path(name, "results.json").read_text()))
    one, two = found
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-4)
    assert two["baselines"] == one["baselines"]
    losses = [pd.read_csv(f"{name}/metrics.csv")["val/loss"].dropna() for name in ("one", "two")]
    assert list(losses[1]) == pytest.approx(list(losses[0]), abs=1e-4)
    assert losses[0].iloc[-1] != losses[0].iloc[0]


def test_weights_without_a_head_are_no_answer():
    text = Path("mine.yaml").read_text().replace("checkpoint: encoder\n", "")
    Path("none.yaml").write_text(text)
    with pytest.raises(UserError, match="no finished run"):
        command.run(["test", "none.yaml", *QUICK])
