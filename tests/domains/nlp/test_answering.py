import csv
import json

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch import Trainer
from transformers import AutoModelForQuestionAnswering

from core.errors import UserError
from core.pretrained import from_pretrained, save_pretrained
from core.task import Step
from domains.nlp.answer_decoding import decode
from domains.nlp.answer_files import AnswerFiles
from domains.nlp.answering import Answering
from domains.nlp.answering_data import AnsweringData
from domains.nlp.networks.span_extractor import SpanExtractor

TINY = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
COLOURS = ["red", "blue", "green", "black", "white", "grey", "brown", "pink"]
THINGS = ["ball", "kite", "boat", "lamp", "drum", "coat"]


def rows(count=24, nullable=True):
    """Ask for the colour of a thing, which every third text does not tell."""
    found = []
    for n in range(count):
        colour, thing = COLOURS[n % 8], THINGS[n % 6]
        null = nullable and n % 3 == 2
        told = THINGS[(n + 1) % 6] if null else thing
        filler = " ".join(f"Nothing more of it number {n}." for _ in range(n % 4))
        context = f"{filler} The {told} is {colour} today. {filler}".strip()
        answer = "" if null else colour
        asked = f"Which colour has the {thing}?"
        found.append({"id": str(n), "question": asked, "context": context, "answer": answer})
    return found


@pytest.fixture
def files(tmp_path):
    def write(given, name="all.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, given)), "utf-8")
        return str(path)

    return write


def data(path, **more):
    options = {"tokenizer": "minilm", "max_length": 48, "batch_size": 8, "seed": 0, **more}
    return AnsweringData(train=path, val=path, test=path, **options)


def same_parts(data, given):
    """Train, validate and test on the same questions."""
    from domains.nlp import answer_parts

    read = answer_parts.read_questions([answer_parts.Path(given)])
    return answer_parts.AnswerParts(*[read.questions] * 3, ())


def task(**more):
    seed_everything(0, verbose=False)

    def adam(parameters):
        return torch.optim.Adam(parameters, lr=3e-3)

    return Answering(SpanExtractor(TINY), adam, max_answer=8, **more)


def trainer(**more):
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", enable_progress_bar=False, **options, **more)


@pytest.fixture
def learnable(files, monkeypatch):
    """Data whose three parts are the same questions."""

    def make(given, **more):
        path = files(given)
        made = data(path, **more)
        monkeypatch.setattr(
            "domains.nlp.answering_data.own_parts", lambda **_: same_parts(made, path)
        )
        made.setup()
        return made

    return make


def test_answers_and_their_absence_are_learned(learnable, tmp_path):
    learned, made = task(), learnable(rows(12), batch_size=5)
    run = trainer(max_epochs=40, check_val_every_n_epoch=40)
    run.fit(learned, made)
    assert run.callback_metrics["val/f1"] == 1
    (judged,) = run.test(learned, made, verbose=False)
    expected = ("exact_match", "f1", "f1_answerable", "null_accuracy")
    assert {name: judged[f"test/{name}"] for name in expected} == dict.fromkeys(expected, 1.0)
    assert torch.isfinite(learned.threshold)
    answering = learned.complete(made.preprocessing)
    assert (answering.max_answer, answering.threshold) == (8, float(learned.threshold))
    again = task()
    again.begin_from(answering)
    assert again.threshold == learned.threshold

    folder = tmp_path / "model"
    save_pretrained(learned.network, folder, init_args={"config": TINY}, preprocessing=answering)
    model = from_pretrained(folder)
    theirs = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokens = made.test_set[0].tokens
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        logits = model.network(*tokens)
        found = theirs(**dict(zip(names, tokens, strict=True)))
    torch.testing.assert_close(found.start_logits, logits[..., 0])
    torch.testing.assert_close(found.end_logits, logits[..., 1])
    source, output = tmp_path / "all.jsonl", tmp_path / "answers.json"
    told = model.preprocessing.predict_file(model.network, source, output)
    assert told.endswith("12 questions, 15 windows (4 without an answer)")
    answers = json.loads(output.read_text("utf-8"))
    assert answers == {row["id"]: row["answer"] for row in rows(12)}


def test_every_question_is_answered_where_all_have_answers(learnable):
    learned, made = task(), learnable(rows(nullable=False))
    run = trainer(max_epochs=2)
    run.fit(learned, made)
    (found,) = run.test(learned, made, verbose=False)
    assert set(found) == {"test/loss", "test/exact_match", "test/f1"}
    assert learned.threshold == torch.inf
    assert learned.complete(made.preprocessing).threshold is None


def test_batches_and_padding_change_no_answer(learnable):
    learned = task().eval()
    made = learnable(rows(), max_length=32)
    assert len(made.test_set.windows) > len(made.test_set)
    together = made.test_set.windows.of_questions(range(24))
    with torch.no_grad():
        whole = learned.step(together)
        alone = [learned.step(made.test_set[row]) for row in range(24)]
    torch.testing.assert_close(whole.prediction, torch.cat([step.prediction for step in alone]))
    losses = torch.stack([step.loss for step in alone])
    weights = torch.tensor([len(made.test_set[row].tokens.ids) for row in range(24)])
    torch.testing.assert_close(whole.loss, (losses * weights).sum() / weights.sum())


def test_the_loss_is_that_of_context_and_first_position(learnable):
    learned, made = task().eval(), learnable(rows())
    batch = made.train_set[0]
    with torch.no_grad():
        step = learned.step(batch)
        logits = learned(batch)[0]
    inside = [0, *(batch.offsets[0, :, 0] >= 0).nonzero().flatten().tolist()]
    expected = 0.0
    for kind in (0, 1):
        place = inside.index(int(batch.positions[0, kind]))
        expected -= float(logits[inside, kind].log_softmax(0)[place]) / 2
    assert float(step.loss) == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_a_known_answer_has_no_loss(learnable):
    learned, made = task().eval(), learnable(rows())
    batch = made.test_set[0]
    unknown = batch._replace(positions=torch.full_like(batch.positions, -100))
    with torch.no_grad():
        step = learned.step(unknown)
    assert float(step.loss) == 0
    assert int(learned.weight(step, unknown)) == 0


def test_texts_are_judged_and_told(learnable):
    learned, made = task(articles=()).eval(), learnable(rows(nullable=False))
    batch = made.test_set.__getitems__([0, 1])
    spans = [(question.answers[0].start, question.context) for question in batch.asked]
    prediction = torch.tensor(
        [[spans[0][0], spans[0][0] + 3, -1.0], [0, len(spans[1][1]), 2.0]], dtype=torch.float64
    )
    items = learned.items(Step(torch.zeros(()), prediction, torch.zeros(2, 2)), batch)
    assert items["answer"] == ["red", spans[1][1]]
    assert items["gold"] == ["red", "blue"]
    assert items["exact_match"] == [1.0, 0.0]
    assert items["f1"][1] == pytest.approx(2 / (1 + len(spans[1][1].split())))


def test_long_evaluation_batches_are_run_in_parts(learnable, monkeypatch):
    learned, made = task().eval(), learnable(rows(), max_length=32)
    batch = made.test_set.windows.of_questions(range(24))
    with torch.no_grad():
        whole = learned(batch)
        monkeypatch.setattr("domains.nlp.answer_decoding.AT_ONCE", 100)
        torch.testing.assert_close(learned(batch), whole)
    assert len(decode(whole, batch, 8)) == 24


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="max_answer=0 must be at least 1"):
        Answering(SpanExtractor(TINY), torch.optim.Adam, max_answer=0)


class TestAnswerFiles:
    @pytest.fixture
    def answering(self):
        from domains.nlp.tokenizer import load_tokenizer

        files = AnswerFiles(32, 0.5, 8, None, load_tokenizer("minilm"))
        return files, task().network

    def test_a_table_holds_the_best_answers(self, answering, tmp_path, files):
        preprocessing, network = answering
        source, output = tmp_path / "q.csv", tmp_path / "a.csv"
        with source.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "question", "context"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows())
        told = preprocessing.predict_file(network, source, output, n_best="2")
        assert "24 questions" in told
        with output.open(newline="", encoding="utf-8") as file:
            answers = list(csv.DictReader(file))
        assert [answer["id"] for answer in answers] == [row["id"] for row in rows()]
        for answer, row in zip(answers, rows(), strict=True):
            for mark in ("", "_2"):
                span = slice(int(answer[f"start{mark}"]), int(answer[f"end{mark}"]))
                assert row["context"][span] == answer[f"answer{mark}"] != ""
            assert float(answer["probability"]) >= float(answer["probability_2"]) > 0
        assert "answer_3" not in answers[0]
        tabs = tmp_path / "a.tsv"
        preprocessing.predict_file(network, source, tabs)
        assert tabs.read_text("utf-8").splitlines()[0].split("\t")[-5] == "answer_3"

    def test_lines_hold_all_that_is_known(self, answering, tmp_path, files):
        preprocessing, network = answering
        source, output = files(rows(6)), tmp_path / "a.jsonl"
        nullable = AnswerFiles(32, 0.5, 8, -1e30, preprocessing.tokenizer)
        told = nullable.predict_file(network, tmp_path / "all.jsonl", output)
        assert "6 without an answer" in told
        for line in output.read_text("utf-8").splitlines():
            row = json.loads(line)
            assert (row["answer"], row["start"]) == ("", None)
            assert row["probability"] == row["no_answer_probability"] > 0
            assert len(row["answers"]) == 3
        assert source

    def test_it_travels_as_json(self, answering):
        for threshold in (None, 0.5, float("inf"), -float("inf")):
            kept = AnswerFiles(32, 0.5, 8, threshold)
            again = AnswerFiles.from_json(json.loads(json.dumps(kept.to_json())))
            assert again.to_json() == kept.to_json()

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"stride": None}, "stride=None must be a number"),
            ({"max_length": 2.5}, "max_length=2.5 must be a whole number"),
            ({"more": 1}, "'more' is unknown"),
        ],
    )
    def test_damaged_json_is_refused(self, answering, change, told):
        with pytest.raises(UserError, match=told):
            AnswerFiles.from_json({**answering[0].to_json(), **change})

    @pytest.mark.parametrize(
        ("output", "options", "told"),
        [
            ("a.txt", {}, "answers are written as .json"),
            ("a.csv", {"n_best": "0"}, "--n_best=0: must be a whole number from 1 to 20"),
            ("a.csv", {"n_best": "x"}, "--n_best=x: must be"),
            ("a.csv", {"plot": "p.png"}, "answers have no picture"),
        ],
    )
    def test_mistakes_are_told(self, answering, tmp_path, files, output, options, told):
        preprocessing, network = answering
        files(rows(2))
        with pytest.raises(UserError, match=told):
            preprocessing.predict_file(
                network, tmp_path / "all.jsonl", tmp_path / output, **options
            )
