import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from core.confusion_picture import confusion_figure
from core.tasks.heads import read_heads
from domains.nlp import label_pictures
from domains.nlp.label_pictures import draw

HEADS = [
    {"name": "topic / kind", "kind": "single", "labels": ["a", "b", "never", "c"]},
    {"name": "mood", "kind": "multi", "labels": ["x", "y"]},
    {"name": "size", "kind": "regression", "labels": ["length"]},
]


@pytest.fixture
def predictions(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"id": range(40)}
    truth = rng.choice(["a", "b"], 40).tolist()
    columns["label_topic / kind"] = [None, *truth[1:]]
    columns["prediction_topic / kind"] = [*(["c"] * 4), *truth[4:]]
    columns["probability_topic / kind"] = rng.uniform(0.3, 1, 40)
    columns["label_mood"] = [None, *([["x"], [], ["y", "x"]] * 13)]
    columns["prediction_mood"] = [["x"], ["y"]] * 20
    columns["probability_mood"] = rng.uniform(0.5, 1, 40)
    columns["label_size"] = [None, *rng.normal(size=39)]
    columns["prediction_size"] = rng.normal(size=40)
    path = tmp_path / "predictions.parquet"
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_a_picture_of_each_kind(predictions, tmp_path):
    made = draw(read_heads(HEADS), predictions, tmp_path)
    assert [path.name for path in made] == [
        *("confusion_topic___kind.png", "reliability_topic___kind.png"),
        *("f1_by_label_mood.png", "reliability_mood.png", "predicted_size.png"),
    ]
    for path in made:
        image = matplotlib.image.imread(path)
        assert min(image.shape[:2]) > 200
        assert image[..., :3].std() > 0.01


def test_confusions_show_labels_in_their_order_and_answers_that_are_never_true(
    predictions, tmp_path, monkeypatch
):
    seen = []

    def spied(*given):
        seen.append(confusion_figure(*given))
        return seen[0]

    monkeypatch.setattr(label_pictures, "confusion_figure", spied)
    (head, *_) = read_heads(HEADS)
    frame = pd.read_parquet(predictions)
    rows = frame[frame["label_topic / kind"].notna()]
    label_pictures._confusion(head, rows, tmp_path / "c.png")
    axes = seen[0].axes[0]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["a", "b", "c"]
    counts = np.array([int(text.get_text()) for text in axes.texts]).reshape(3, 3)
    expected = pd.crosstab(rows["label_topic / kind"], rows["prediction_topic / kind"])
    assert counts[:2].tolist() == expected.to_numpy().tolist()
    assert counts[2].tolist() == [0, 0, 0]
    assert counts.sum() == 39


def test_no_predictions_no_pictures(tmp_path):
    assert draw(read_heads(HEADS), tmp_path / "none.parquet", tmp_path) == []


def test_a_head_without_answers_has_no_picture(predictions, tmp_path):
    frame = pd.read_parquet(predictions)
    frame["label_mood"] = None
    frame.to_parquet(predictions)
    names = [path.name for path in draw(read_heads(HEADS), predictions, tmp_path)]
    assert not any("mood" in name for name in names)
