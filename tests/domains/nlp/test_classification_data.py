import json

import numpy as np
import pandas as pd
import pytest
import torch

from core.errors import UserError
from core.networks.hugging_face import architecture
from domains.nlp.classification_data import ClassificationData
from domains.nlp.networks.sequence_classifier import SequenceClassifier
from domains.nlp.networks.text_embedder import TextEmbedder

WORDS = ["good", "bad", "fine", "awful", "dull", "great", "slow", "warm"]


def rows(count, seed=0, **columns):
    rng = np.random.default_rng(seed)
    texts = [f"{' '.join(rng.choice(WORDS, rng.integers(1, 9)))} n{seed}{n}" for n in range(count)]
    labels = [f"class {n % 3}" for n in range(count)]
    return pd.DataFrame({"text": texts, "label": labels, **columns})


@pytest.fixture
def build(tiny_bert, tmp_path):
    def build(frames, **options):
        given = {}
        for part, frame in frames.items():
            given[part] = str(tmp_path / f"{part}.csv")
            if any(isinstance(cell, list) for cell in frame.iloc[:, -1]):
                given[part] = str(tmp_path / f"{part}.jsonl")
                frame.to_json(given[part], orient="records", lines=True)
            else:
                frame.to_csv(given[part], index=False)
        return ClassificationData(
            **given, **{"tokenizer": str(tiny_bert), "probe": False, "max_length": 16} | options
        )

    return build


def sizes(data):
    data.setup()
    return [len(part) for part in (data.train_set, data.val_set, data.test_set)]


def texts_of(data, part):
    return [
        data.tokenizer.decode(part.encoded.windows(n)[0].ids, skip_special_tokens=True)
        for n in range(len(part))
    ]


def test_one_file_is_divided(build, tmp_path):
    frame = rows(200)
    data = build({"train": frame})
    train, val, test = sizes(data)
    assert train + val + test == 200
    assert val == pytest.approx(20, abs=12)
    assert test == pytest.approx(40, abs=16)
    parts = [texts_of(data, part) for part in (data.train_set, data.val_set, data.test_set)]
    assert sorted(text for part in parts for text in part) == sorted(frame["text"])
    for part in (data.train_set, data.val_set, data.test_set):  # stratified
        assert set(part.targets[:, 0].tolist()) == {0, 1, 2}
    truth = dict(zip(frame["text"], frame["label"], strict=True))
    labels = data.heads[0].labels
    for part, texts in zip((data.train_set, data.val_set, data.test_set), parts, strict=True):
        told = [labels[int(n)] for n in part.targets[:, 0]]
        assert told == [truth[text] for text in texts]
    again = build({"train": frame.sample(frac=1, random_state=1)})
    again.setup()
    assert sorted(texts_of(again, again.test_set)) == sorted(parts[2])  # by content, not by place
    data.keep(tmp_path)
    kept = build({"train": frame}, split=str(tmp_path / "splits.parquet"))
    kept.setup()
    assert texts_of(kept, kept.test_set) == parts[2]


def test_training_and_test_files(build):
    data = build({"train": rows(60), "test": rows(9, 1)})
    train, val, test = sizes(data)
    assert test == 9
    assert train + val == 60
    assert 0 < val < 20


def test_training_and_validation_files(build):
    data = build({"train": rows(60), "val": rows(9, 1)})
    train, val, test = sizes(data)
    assert val == 9
    assert train + test == 60
    with pytest.raises(UserError, match=r"--data.folds=3: folds validate and test on rows of"):
        sizes(build({"train": rows(60), "val": rows(9, 1)}, folds=3))


def test_three_files(build):
    frames = {"train": rows(12), "val": rows(6, 1), "test": rows(7, 2)}
    assert sizes(build(frames)) == [12, 6, 7]
    with pytest.raises(UserError, match="the parts are given already"):
        sizes(build(frames, split="random"))


def test_groups_stay_together(build):
    frame = rows(90, author=[f"author {n // 3}" for n in range(90)])
    data = build({"train": frame}, split="group:author")
    data.setup()
    home = dict(zip(frame["text"], frame["author"], strict=True))
    authors = [
        {home[text] for text in texts_of(data, part)}
        for part in (data.train_set, data.val_set, data.test_set)
    ]
    assert sum(map(len, authors)) == 30
    assert all(authors)


def test_every_row_is_tested_in_one_fold(build):
    frame = rows(40)
    tested = []
    for fold in range(4):
        data = build({"train": frame}, folds=4, fold=fold)
        assert sum(sizes(data)) == 40
        tested += texts_of(data, data.test_set)
    assert sorted(tested) == sorted(frame["text"])


@pytest.mark.parametrize(
    ("kind", "column", "labels"),
    [
        ("multi", [["x"], ["y", "x"], []] * 20, ("x", "y")),
        ("regression", [n / 7 for n in range(60)], ("label",)),
    ],
)
def test_other_kinds(build, kind, column, labels):
    frame = rows(60)
    frame["label"] = column
    data = build({"train": frame})
    assert sum(sizes(data)) == 60
    (head,) = data.heads
    assert (head.kind, head.labels) == (kind, labels)
    truth = dict(zip(frame["text"], column, strict=True))
    for text, target in zip(texts_of(data, data.test_set), data.test_set.targets, strict=True):
        expected = [float(x in truth[text]) for x in "xy"] if kind == "multi" else [truth[text]]
        assert target.tolist() == pytest.approx(expected)


def test_several_heads_with_missing_answers(build):
    frame = rows(60, mood=["up", None, "down"] * 20)
    frame.loc[::5, "label"] = None
    data = build({"train": frame}, label="label,mood")
    assert sum(sizes(data)) == 60
    assert [head.name for head in data.heads] == ["label", "mood"]
    assert ClassificationData.sizes(data.config)["heads"][1]["labels"] == ["down", "up"]
    told = data.summary()
    assert "12 rows have no answer in column 'label' and do not count there" in told
    assert "20 rows have no answer in column 'mood' and do not count there" in told
    targets = torch.cat([p.targets for p in (data.train_set, data.val_set, data.test_set)])
    assert (targets < 0).sum(0).tolist() == [12, 20]


def test_a_rare_class_trains(build):
    frame = rows(60)
    frame.loc[7, "label"] = "rare"
    data = build({"train": frame})
    data.setup()
    assert (data.train_set.targets == 3).sum() == 1
    assert any("rare" in note for note in data.summary())


def test_texts_in_pairs(build):
    frame = rows(40, other=[f"second {n}" for n in range(40)])
    data = build({"train": frame, "val": rows(3, 1, other="x"), "test": rows(3, 2, other="y")})
    data.config["pair"] = "other"
    data.setup()
    window = data.train_set.encoded.windows(4)[0]
    expected = data.tokenizer(frame["text"][4], "second 4", truncation=True, max_length=16)
    assert window.ids.tolist() == expected["input_ids"]
    assert window.types.tolist() == expected["token_type_ids"]


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        ({}, {"text": "txt"}, r"--data.text: .* has no column 'txt'; did you mean 'text'"),
        ({}, {"label": "labels"}, r"--data.label: .* has no column 'labels'"),
        ({}, {"label": "label,mood"}, r"--data.label: .* has no column 'mood'"),
        ({}, {"pair": "b"}, r"--data.pair: .* has no column 'b'"),
        ({}, {"split": "group:author"}, "author"),
        ({}, {"val_fraction": 0.9}, "must lie above 0 and leave rows"),
        ({}, {"val_fraction": 0.0}, "must lie above 0 and leave rows"),
        ({}, {"dataset": "sst"}, "give --data.train FILE .* or --data.dataset"),
        ({"text": None}, {}, r"column 'text': no text in row 3 of the train part"),
        ({"text": "  "}, {}, r"column 'text': no text in row 3 of the train part"),
    ],
)
def test_mistakes_are_told_in_one_line(build, change, options, told):
    frame = rows(30)
    for name, cell in change.items():
        frame.loc[2, name] = cell
    with pytest.raises(UserError, match=told) as error:
        sizes(build({"train": frame}, **options))
    assert "\n" not in str(error.value)


def test_a_part_without_its_columns_is_named(build):
    frames = {"train": rows(30), "val": rows(6, 1), "test": rows(6, 2).drop(columns="label")}
    with pytest.raises(UserError, match=r"--data.label: .*test.csv has no column 'label'"):
        sizes(build(frames))
    frames["test"] = rows(6, 2).assign(label="unheard of")
    with pytest.raises(UserError, match="the test part has labels that training never saw"):
        sizes(build(frames))


def test_a_changed_file_is_read_again(build):
    data = build({"train": rows(30), "val": rows(4, 1), "test": rows(5, 2)})
    assert sizes(data) == [30, 4, 5]
    data = build({"train": rows(31), "val": rows(4, 1), "test": rows(5, 2)})
    assert sizes(data) == [31, 4, 5]


def test_batches(build):
    frames = {"train": rows(30), "val": rows(4, 1), "test": rows(20, 2)}
    frames["test"].loc[3, "text"] = "long " * 40
    data = build(frames, long_input="window", batch_size=4, eval_batch_size=3, token_budget=64)
    data.setup()
    seen = []
    for batch in data.test_dataloader():
        n = len(batch.targets)
        assert n <= 3
        owner = torch.arange(n) if batch.owner is None else batch.owner
        assert len(owner) == len(batch.inputs.ids)
        assert batch.inputs.ids.numel() <= 64 or n == 1
        for place, row in enumerate(batch.rows.tolist()):
            windows = data.test_set.encoded.windows(row)
            own = (owner == place).nonzero()[:, 0].tolist()
            assert len(own) == len(windows)
            for line, window in zip(own, windows, strict=True):
                ids = batch.inputs.ids[line, : len(window.ids)]
                assert ids.tolist() == window.ids.tolist()
                assert batch.inputs.mask[line].sum() == len(window.ids)
            assert torch.equal(batch.targets[place], data.test_set.targets[row])
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(20))
    assert "1 of 54 texts are longer than 16 tokens and are read in several windows" in (
        data.summary()
    )


def test_the_fingerprint_is_that_of_the_data(build):
    frames = {"train": rows(30), "val": rows(4, 1), "test": rows(5, 2)}
    frames["train"].loc[3, "text"] = "long " * 40

    def fingerprint(frames):
        data = build(frames)
        data.setup()
        return data.fingerprint()

    first = fingerprint(frames)
    build({"train": rows(30, 5)}).setup()  # what was tokenised last does not matter
    assert fingerprint(frames) == first
    frames["train"].loc[3, "label"] = "class 1"
    assert fingerprint(frames) != first


@pytest.mark.parametrize(
    ("change", "length", "told"),
    [
        ({}, 128, None),
        ({}, 129, r"max_length=129 is more than the network's 128 positions"),
        ({"max_position_embeddings": 130}, 130, "128 positions in steps of 8"),
        ({"model_type": "roberta", "pad_token_id": 1}, 128, "120 positions.*embeddings=130"),
        ({"model_type": "roberta", "pad_token_id": 1}, 120, None),
        ({"vocab_size": 30000}, 16, "tokens up to 30521"),
    ],
)
def test_a_network_must_take_the_texts(build, tiny_bert, change, length, told):
    config = architecture(json.loads((tiny_bert / "config.json").read_text())) | change
    data = build({"train": rows(30)}, max_length=length)
    network = SequenceClassifier(config, ClassificationData.sizes(data.config)["heads"])
    if told:
        with pytest.raises(UserError, match=told):
            data.check(network)
    else:
        data.check(network)
        ids = torch.ones(1, -(-length // 8) * 8, dtype=torch.long) * 7
        network(ids, torch.ones_like(ids))


def test_baselines(build):
    frame = rows(120)
    frame["text"] = [f"{text} {label}x" for text, label in frame[["text", "label"]].to_numpy()]
    data = build({"train": frame, "val": rows(9, 1), "test": frame.iloc[:50]})
    data.setup()
    found = data.baselines()
    assert list(found) == ["majority", "TF-IDF + linear"]
    for batch in data.test_dataloader():
        prediction, target = found["TF-IDF + linear"](batch)
        assert torch.equal(prediction.argmax(1).float(), target[:, 0])
        prediction, _ = found["majority"](batch)
        assert (prediction.argmax(1) == 0).all()


def test_baselines_of_several_heads(build, tiny_bert):
    frame = rows(60, mood=["up", None, "down"] * 20, size=[n / 3 for n in range(60)])
    data = build({"train": frame}, label="label,mood,size", probe=True)
    data.setup()
    found = data.baselines()
    assert list(found) == ["majority", "TF-IDF + linear", "frozen encoder + linear"]
    mean = data.train_set.targets[:, 2].mean()
    for batch in data.test_dataloader():
        for baseline in found.values():
            prediction, target = baseline(batch)
            assert prediction.shape == (len(batch.rows), 3 + 2 + 1)
            assert prediction.isfinite().all()
            assert torch.equal(target, batch.targets)
        torch.testing.assert_close(found["majority"](batch)[0][:, 5], mean.expand(len(batch.rows)))


def test_vectors_do_not_depend_on_batches(build, tiny_bert, monkeypatch):
    from domains.nlp import baselines

    frame = rows(30)
    frame.loc[3, "text"] = "long words " * 30
    data = build({"train": frame, "val": rows(3, 1), "test": rows(3, 2)}, long_input="window")
    data.setup()
    monkeypatch.setattr(baselines, "faster_precision", lambda: "32-true")
    network = baselines.frozen(str(tiny_bert), TextEmbedder, normalise=False)
    encoded, pad = data.train_set.encoded, data.tokenizer.pad_token_id
    found = baselines.embed(network, encoded, pad)
    monkeypatch.setattr(baselines, "BUDGET", 20)
    np.testing.assert_allclose(baselines.embed(network, encoded, pad), found, atol=1e-5)
    assert found.shape == (30, 32)


def test_a_fit_and_its_test_whatever_the_batches(build, tiny_bert, tmp_path):
    """From the files to the predictions: the same in batches of 1 and of 64."""
    from lightning.pytorch import Trainer

    from core.callbacks.predictions import Predictions
    from core.tasks.classification import Classification

    config = architecture(json.loads((tiny_bert / "config.json").read_text()))
    frames = {"train": rows(48), "val": rows(12, 1), "test": rows(15, 2)}
    frames["test"].loc[3, "text"] = "long " * 40
    heads = ClassificationData.sizes(build(frames).config)["heads"]
    torch.manual_seed(0)
    task = Classification(SequenceClassifier(config, heads))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"accelerator": "cpu", "enable_model_summary": False}
    Trainer(max_epochs=1, **quiet).fit(task, build(frames, long_input="window", seed=1))
    told, written = [], []
    for size in (1, 64):
        data = build(frames, long_input="window", eval_batch_size=size, seed=1)
        path = tmp_path / f"{size}.parquet"
        trainer = Trainer(callbacks=[Predictions(path)], **quiet)
        told.append(trainer.test(task, data, verbose=False)[0])
        written.append(pd.read_parquet(path))
    assert told[0] == pytest.approx(told[1], abs=1e-5)
    pd.testing.assert_frame_equal(written[0], written[1], rtol=0, atol=1e-5)
    assert written[0]["id"].tolist() == list(range(15))
    assert written[0]["label"].tolist() == frames["test"]["label"].tolist()
    model = task.complete(data.preprocessing)  # what travels answers as the test did
    source = tmp_path / "test.csv"
    model.predict_file(task.network.eval(), source, tmp_path / "out.csv")
    answers = pd.read_csv(tmp_path / "out.csv")
    assert answers["label"].tolist() == written[1]["prediction"].tolist()
    np.testing.assert_allclose(answers["probability"], written[1]["probability"], atol=1e-5)
