import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from sklearn import metrics as sk

from core.callbacks.predictions import Predictions
from core.errors import UserError
from core.task import Step
from domains.security.alerts import FlowAlerts
from domains.security.baselines import fitted
from domains.security.flows import FlowTable
from domains.security.intrusion_detection import IntrusionDetection
from domains.security.pictures import by_attack, draw
from pleiad.conclusion import _judge_baselines

sys.path.insert(0, str(Path(__file__).parent))
from flow_case import ATTACKS, FlowCase, LastFlow, preprocessing


def trained(folder, classes=("benign", "attack"), **given):
    torch.manual_seed(0)
    adam = partial(torch.optim.Adam, lr=0.02)
    task = IntrusionDetection(LastFlow(len(classes)), adam, **given)
    data = FlowCase(classes, batch_size=100)
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Predictions(folder / "predictions.parquet")],
    )
    trainer.fit(task, data)
    (found,) = trainer.test(task, data, verbose=False)
    return task, data, found, pd.read_parquet(folder / "predictions.parquet")


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("binary")
    return (*trained(folder), folder)


def test_metrics_are_those_of_sklearn(binary):
    _, _, found, frame, _ = binary
    truth = frame["label"] == "attack"
    verdict = frame["score"] > 0.5
    assert (verdict == (frame["prediction"] == "attack")).all()
    (benign, false), _ = sk.confusion_matrix(truth, verdict)
    wanted = {
        "f1": sk.f1_score(truth, verdict),
        "recall": sk.recall_score(truth, verdict),
        "precision": sk.precision_score(truth, verdict),
        "false_alarm_rate": false / (false + benign),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, verdict),
        "pr_auc": sk.average_precision_score(truth, frame["score"]),
        "f1_at_budget": sk.f1_score(truth, frame["alert"]),
        "recall_at_budget": sk.recall_score(truth, frame["alert"]),
    }
    assert {name: found[f"test/{name}"] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert wanted["recall"] > 0.5  # it has learned


def test_the_budget_holds_on_validation_data_and_no_lower_threshold_does(binary):
    task, data, _, _, _ = binary
    batch = data.val_set.__getitems__(range(len(data.val_set)))
    with torch.inference_mode():
        scores = task(batch)[:, 0].double().sigmoid()
    benign = scores[batch.labels == 0]
    assert (benign > task.threshold).double().mean() <= 0.01
    lower = torch.nextafter(task.threshold, torch.zeros((), dtype=torch.float64))
    assert (benign > lower).double().mean() > 0.01


def test_kinds_that_training_lacks_are_told_apart(binary):
    _, _, found, frame, _ = binary
    worms = frame[frame["attack"] == "worm"]
    assert found["test/recall_unseen"] == pytest.approx((worms["score"] > 0.5).mean())
    assert found["test/recall/worm"] == found["test/recall_unseen"]
    assert "test/recall/normal" not in found
    table = by_attack(frame, "benign", ["worm"])
    assert table["in_training"].to_dict() == {"flood": True, "probe": True, "worm": False}
    assert table.loc["flood", "recall"] == pytest.approx(found["test/recall/flood"])


def test_baselines_stand_beside_the_network_by_their_own_thresholds(binary):
    task, data, found, _, _ = binary
    judged = _judge_baselines(task, data)
    names = {"gradient boosting", "logistic regression", "isolation forest"}
    assert set(judged) == names
    told = {name for name in found if name.count("/") == 1} - {"test/loss"}
    for figures in judged.values():
        assert set(figures) == told | {"test/flows_per_second"}
        assert figures["test/flows_per_second"] > 0
        assert figures["test/false_alarm_rate_at_budget"] < 0.06
    assert judged["gradient boosting"]["test/recall"] > 0.6
    assert judged["logistic regression"]["test/recall"] > 0.6
    assert set(task.figures()) == {"flows_per_second"}


def test_pictures_and_the_table_of_attacks(binary):
    folder = binary[-1]
    paths = draw(folder / "predictions.parquet", folder, ("benign", "attack"), ["worm"])
    assert [path.stem for path in paths] == ["confusion", "thresholds", "recall_by_attack"]
    assert all(path.stat().st_size > 5_000 for path in paths)
    table = pd.read_csv(folder / "recall_by_attack.csv")
    assert list(table.columns) == ["attack", "flows", "recall", "recall_at_budget", "in_training"]
    assert draw(folder / "absent.parquet", folder, (), ()) == []


def test_several_classes(tmp_path):
    task, data, found, frame = trained(tmp_path, ATTACKS)
    assert set(frame["label"]) == set(ATTACKS)
    chosen = frame["prediction"].astype(str)
    attack = frame["label"] != "normal"
    assert ((frame["score"] > 0.5) == (chosen != "normal")).all()
    truth = frame["label"].astype(str)
    assert found["test/f1_macro"] == pytest.approx(sk.f1_score(truth, chosen, average="macro"))
    flood = sk.f1_score(truth == "flood", chosen == "flood")
    assert found["test/f1/flood"] == pytest.approx(flood)
    assert found["test/f1"] == pytest.approx(sk.f1_score(attack, chosen != "normal"))
    judged = _judge_baselines(task, data)
    assert judged["gradient boosting"]["test/f1_macro"] > 0.4
    assert judged["isolation forest"]["test/recall"] >= 0
    draw(tmp_path / "predictions.parquet", tmp_path, ATTACKS, ["worm"])
    assert (tmp_path / "confusion.png").is_file()


def test_the_threshold_travels(binary):
    task = binary[0]
    fresh = IntrusionDetection(LastFlow())

    kept = FlowAlerts.from_json(json.loads(json.dumps(task.complete(preprocessing()).to_json())))
    fresh.begin_from(kept)
    assert fresh.threshold == task.threshold
    assert torch.equal(fresh.curve.nan_to_num(-1), task.curve.nan_to_num(-1))
    rates = [row[1] for row in kept.curve]
    assert rates == sorted(rates)
    assert rates[0] == 0


def test_a_batch_without_attacks_has_no_area(binary):
    task = binary[0]
    metrics = task.metrics["test"].clone()
    metrics.reset()
    batch = FlowCase()
    batch.setup()
    flows = batch.test_set.__getitems__(range(9))
    benign = flows._replace(labels=flows.labels * 0, attacks=flows.attacks * 0)
    step = Step(torch.zeros(()), torch.full((9, 1), 5.0), benign.labels)
    task.update_metrics(metrics, step, benign)
    found = metrics.compute()
    assert found["test/pr_auc"].isnan()
    assert found["test/false_alarm_rate"] == 1
    assert found["test/recall"] == found["test/f1"] == 0


@pytest.mark.parametrize("budget", [0.0, 1.0, -1])
def test_budgets_are_shares(budget):
    with pytest.raises(UserError, match="false_alarm_budget"):
        IntrusionDetection(LastFlow(), false_alarm_budget=budget)


def test_probabilities_are_refused():
    network = LastFlow()
    network.probabilities = True
    with pytest.raises(UserError, match="logits"):
        IntrusionDetection(network)


def test_sure_scores_are_told_apart():
    from domains.security.scores import attack_score

    scores = attack_score(torch.tensor([[20.0], [25.0], [-40.0]]))
    assert scores[1] > scores[0]
    assert 0 < scores[2] < 1e-16
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert attack_score(logits) == pytest.approx(1 - np.exp(1) / np.exp([1, 2, 3]).sum())


def test_baselines_take_the_infinities_of_the_published_scaling():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    numeric = (rng.random((200, 3)) + labels[:, None]).astype(np.float32)
    parts = {}
    for name in ("train", "val", "test"):
        own = numeric.copy()
        if name == "test":
            own[0], own[1] = -np.inf, np.nan
        parts[name] = FlowTable(own, np.zeros((200, 1), np.uint8), labels, labels)
    found = fitted(parts, np.arange(200), 2, 0)
    assert all(baseline.logits.isfinite().all() for baseline in found.values())
    verdicts = found["gradient boosting"].logits[2:, 0].numpy() > 0
    assert (verdicts == (labels[2:] > 0)).mean() > 0.95
