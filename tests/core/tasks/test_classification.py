from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from scipy import stats
from sklearn import metrics as reference
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from core.callbacks.predictions import Predictions
from core.errors import UserError
from core.tasks import calibration
from core.tasks.classification import Classification, label_weights, mean_by, read_answers
from core.tasks.heads import read_heads

NAN = float("nan")
SINGLE = [{"name": "", "kind": "single", "labels": ["a", "b", "c"]}]
BINARY = [{"name": "", "kind": "single", "labels": ["no", "yes"]}]
MULTI = [{"name": "", "kind": "multi", "labels": ["x", "y", "z"]}]
MEASURE = [{"name": "", "kind": "regression", "labels": ["score"]}]
SEVERAL = [
    {"name": "topic", "kind": "single", "labels": ["a", "b", "c"]},
    {"name": "mood", "kind": "multi", "labels": ["x", "y", "z"]},
    {"name": "score", "kind": "regression", "labels": ["score"]},
]


class Batch(NamedTuple):
    inputs: tuple[Tensor, ...]
    targets: Tensor
    rows: Tensor
    owner: Tensor | None = None


class Given(nn.Module):
    """Logits that are the input, moved by a parameter that begins at 0."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, logits):
        return logits + self.shift


def batch(logits, targets, owner=None):
    targets = torch.as_tensor(targets, dtype=torch.float32)
    return Batch((torch.as_tensor(logits),), targets, torch.arange(len(targets)), owner)


def draw(described, count=64, seed=0, missing=0.0):
    """Logits (N, K) and targets (N, T), some of them unknown."""
    rng = np.random.default_rng(seed)
    logits, targets = [], []
    for head in read_heads(described):
        size = len(head.labels)
        logits.append(rng.normal(size=(count, size)))
        own = {
            "single": rng.integers(0, size, (count, 1)).astype(float),
            "multi": rng.integers(0, 2, (count, size)).astype(float),
            "regression": rng.normal(size=(count, size)),
        }[head.kind]
        own[rng.random(count) < missing] = NAN if head.kind == "regression" else -1
        targets.append(own)
    return (
        torch.from_numpy(np.concatenate(logits, 1)).float(),
        torch.from_numpy(np.concatenate(targets, 1)).float(),
    )


class Loaded(LightningDataModule):
    def __init__(self, logits, targets, sizes, counts=None):
        super().__init__()
        self.parts = []
        begin = 0
        for size in sizes:
            rows = torch.arange(begin, begin + size)
            self.parts.append(Batch((logits[rows],), targets[rows], rows))
            begin += size
        if counts is not None:
            self.label_counts = lambda: counts

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.parts, batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


def trainer(**options):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def judged(task, logits, targets, sizes):
    data = Loaded(logits, targets, sizes)
    return trainer().validate(task, data, verbose=False)[0]


# ---- losses ----


def test_cross_entropy_by_hand():
    logits = [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [5.0, 5.0, 5.0]]
    loss = Classification(Given(SINGLE)).step(batch(logits, [[0], [2], [-1]])).loss
    by_hand = [-np.log(np.exp(2) / (np.exp(2) + 2)), -np.log(1 / (2 + np.e))]
    assert loss.item() == pytest.approx(np.mean(by_hand), rel=1e-6)


def test_binary_cross_entropy_by_hand():
    logits = [[0.0, 2.0, -1.0], [9.0, 9.0, 9.0]]
    loss = Classification(Given(MULTI)).step(batch(logits, [[1, 0, 0], [-1, -1, -1]])).loss
    by_hand = [np.log(2), np.log(1 + np.exp(2)), np.log(1 + np.exp(-1))]
    assert loss.item() == pytest.approx(np.mean(by_hand), rel=1e-6)


def test_squared_error_by_hand():
    loss = Classification(Given(MEASURE)).step(batch([[1.0], [3.0], [0.0]], [[2], [5], [NAN]])).loss
    assert loss.item() == pytest.approx((1 + 4) / 2)


def test_several_heads_add_up():
    logits, targets = draw(SEVERAL)
    loss = Classification(Given(SEVERAL)).step(batch(logits, targets)).loss
    parts = (
        F.cross_entropy(logits[:, :3], targets[:, 0].long()),
        F.binary_cross_entropy_with_logits(logits[:, 3:6], targets[:, 1:4]),
        F.mse_loss(logits[:, 6:], targets[:, 4:]),
    )
    torch.testing.assert_close(loss, sum(parts))


def test_several_heads_with_missing_answers_by_hand():
    logits = torch.tensor([[2.0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0, 7]])
    targets = torch.tensor([[0, -1, -1, -1, 3.0], [-1, -1, -1, -1, NAN]])
    loss = Classification(Given(SEVERAL)).step(batch(logits, targets)).loss
    entropy = -np.log(np.exp(2) / (np.exp(2) + 2))
    assert loss.item() == pytest.approx(3 * (entropy + (1 - 3) ** 2) / 2, rel=1e-6)


def test_a_batch_without_any_answer_teaches_nothing():
    task = Classification(Given(SEVERAL))
    loss = task.step(batch(torch.randn(2, 7), [[-1, -1, -1, -1, NAN]] * 2)).loss
    loss.backward()
    assert loss.item() == 0
    assert task.network.shift.grad.item() == 0


def test_label_smoothing():
    logits, targets = draw(SINGLE)
    loss = Classification(Given(SINGLE), label_smoothing=0.2).step(batch(logits, targets)).loss
    probability = logits.log_softmax(1)
    wanted = F.one_hot(targets[:, 0].long(), 3) * 0.8 + 0.2 / 3
    torch.testing.assert_close(loss, -(wanted * probability).sum(1).mean())
    logits, targets = draw(MULTI)
    loss = Classification(Given(MULTI), label_smoothing=0.2).step(batch(logits, targets)).loss
    wanted = targets * 0.8 + 0.1
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, wanted))
    with pytest.raises(UserError, match="label_smoothing=1"):
        Classification(Given(SINGLE), label_smoothing=1)


# ---- class weights ----


def test_balanced_weights_are_those_of_sklearn():
    y = np.array([0] * 6 + [1] * 3 + [2])
    counts = [torch.tensor([6.0, 3, 1])]
    found = label_weights(read_heads(SINGLE), counts, "balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_rooted_weights_have_a_mean_of_one():
    found = label_weights(read_heads(SINGLE), [torch.tensor([9.0, 4, 1])], "sqrt")
    assert found.mean().item() == pytest.approx(1)
    torch.testing.assert_close(found / found[0], torch.tensor([1, 3 / 2, 3.0]))


def test_weights_of_labels_and_of_a_class_that_is_not_there():
    counts = [torch.tensor([[1.0, 2, 0], [9, 8, 10]])]
    assert label_weights(read_heads(MULTI), counts, "balanced").tolist() == [9, 4, 10]
    assert label_weights(read_heads(MULTI), counts, "sqrt").tolist() == pytest.approx(
        [3, 2, 10**0.5]
    )
    absent = label_weights(read_heads(SINGLE), [torch.tensor([4.0, 0, 2])], "balanced")
    assert absent.isfinite().all()
    several = [torch.tensor([1.0, 1, 1]), *counts, torch.ones(1)]
    assert label_weights(read_heads(SEVERAL), several, "balanced").tolist() == [
        1,
        1,
        1,
        9,
        4,
        10,
        1,
    ]


def test_weights_count_in_the_loss_and_stay_for_the_test():
    logits, targets = draw(SINGLE, 12)
    counts = torch.bincount(targets[:, 0].long(), minlength=3).float()
    task = Classification(Given(SINGLE), torch.optim.SGD, class_weights="balanced")
    task.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    data = Loaded(logits, targets, [12], [counts])
    trainer(max_epochs=1).fit(task, data)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=targets[:, 0].numpy())
    each = F.cross_entropy(logits, targets[:, 0].long(), reduction="none").numpy()
    expected = (weights[targets[:, 0].long()] * each).mean()
    assert task.step(data.parts[0]).loss.item() == pytest.approx(expected, rel=1e-5)
    again = Classification(Given(SINGLE), class_weights="balanced")
    again.load_state_dict(task.state_dict())
    told = trainer().test(again, Loaded(logits, targets, [5, 7]), verbose=False)[0]
    assert told["test/loss"] == pytest.approx(expected, rel=1e-5)


def test_weights_need_counts():
    logits, targets = draw(SINGLE, 4)
    task = Classification(Given(SINGLE), class_weights="sqrt")
    with pytest.raises(UserError, match="class_weights=sqrt needs data that count"):
        trainer(max_epochs=1).fit(task, Loaded(logits, targets, [4]))


# ---- metrics ----


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("described", [SINGLE, BINARY])
def test_metrics_of_classes_are_those_of_sklearn(described, seed):
    logits, targets = draw(described, 50, seed)
    told = judged(Classification(Given(described)), logits, targets, [20, 30])
    truth, answer = targets[:, 0].long().numpy(), logits.argmax(1).numpy()
    expected = {
        "val/accuracy": reference.accuracy_score(truth, answer),
        "val/f1_macro": reference.f1_score(truth, answer, average="macro"),
        "val/f1_weighted": reference.f1_score(truth, answer, average="weighted"),
        "val/matthews": reference.matthews_corrcoef(truth, answer),
        "val/loss": reference.log_loss(truth, logits.double().softmax(1).numpy()),
    }
    if described is BINARY:
        expected["val/f1"] = reference.f1_score(truth, answer)
    assert told == pytest.approx(expected, abs=1e-6)


def test_metrics_where_a_class_is_never_answered_or_never_true():
    logits = F.one_hot(torch.tensor([0, 0, 1, 1, 0]), 3).float()
    targets = torch.tensor([[0], [2], [0], [2], [0]]).float()
    told = judged(Classification(Given(SINGLE)), logits, targets, [5])
    truth, answer = targets[:, 0].numpy(), logits.argmax(1).numpy()
    expected = reference.f1_score(truth, answer, average="macro", zero_division=0)
    assert told["val/f1_macro"] == pytest.approx(expected)


def test_matthews_of_one_answer_for_all_is_zero():
    logits = F.one_hot(torch.zeros(6, dtype=torch.long), 2).float()
    targets = torch.tensor([[0], [1], [0], [1], [0], [0]]).float()
    told = judged(Classification(Given(BINARY)), logits, targets, [6])
    assert told["val/matthews"] == pytest.approx(0, abs=1e-6)
    assert reference.matthews_corrcoef(targets[:, 0], logits.argmax(1)) == 0


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_labels_are_those_of_sklearn(seed):
    logits, targets = draw(MULTI, 40, seed)
    told = judged(Classification(Given(MULTI)), logits, targets, [40])
    truth, answer = targets.numpy(), (logits >= 0).numpy()
    expected = {
        "val/f1": reference.f1_score(truth, answer, average="micro"),
        "val/f1_macro": reference.f1_score(truth, answer, average="macro"),
        "val/f1_weighted": reference.f1_score(truth, answer, average="weighted"),
        "val/exact_match": reference.accuracy_score(truth, answer),
        "val/loss": told["val/loss"],
    }
    assert told == pytest.approx(expected, abs=1e-6)


def test_metrics_of_a_measure_are_those_of_scipy():
    logits, targets = draw(MEASURE, 30)
    told = judged(Classification(Given(MEASURE)), logits, targets, [11, 19])
    a, b = logits[:, 0].numpy(), targets[:, 0].numpy()
    expected = {
        "val/mse": np.square(a - b).mean(),
        "val/mae": np.abs(a - b).mean(),
        "val/pearson": stats.pearsonr(a, b).statistic,
        "val/spearman": stats.spearmanr(a, b).statistic,
        "val/loss": np.square(a - b).mean(),
    }
    assert told == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("described", [SINGLE, BINARY, MULTI, MEASURE, SEVERAL])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_no_metric_depends_on_batches_or_order(described, missing):
    logits, targets = draw(described, 24, 3, missing)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    task = Classification(Given(described))
    whole = judged(task, logits, targets, [24])
    measured = (task.temperature.clone(), task.threshold.clone())
    for logits_, targets_, sizes in (
        (logits, targets, [1] * 24),
        (logits, targets, [5, 18, 1]),
        (logits[order], targets[order], [7, 17]),
    ):
        assert judged(task, logits_, targets_, sizes) == pytest.approx(whole, abs=2e-6)
        torch.testing.assert_close((task.temperature, task.threshold), measured)


def test_missing_answers_count_for_nothing():
    logits, targets = draw(SEVERAL, 40, 2, 0.5)
    told = judged(Classification(Given(SEVERAL)), logits, targets, [9, 31])
    known = targets[:, 0] >= 0
    answer = logits[known][:, :3].argmax(1)
    assert told["val/accuracy_topic"] == pytest.approx(
        (answer == targets[known, 0]).float().mean().item()
    )
    known = targets[:, 4].isfinite()
    assert told["val/mae_score"] == pytest.approx(
        (logits[known, 6] - targets[known, 4]).abs().mean().item()
    )


# ---- answers ----


def test_validation_measures_and_the_test_uses_it(tmp_path):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 3, generator=generator)
    targets = torch.bernoulli((logits - 1).sigmoid(), generator=generator)
    task = Classification(Given(MULTI))
    judged(task, logits * 3, targets, [200])
    own = (logits * 3).double()
    assert task.temperature.item() == pytest.approx(
        calibration.temperature(task.heads[0], own, targets), rel=1e-6
    )
    cut = calibration.thresholds((own / task.temperature.item()).sigmoid(), targets)
    torch.testing.assert_close(task.threshold.double(), cut, rtol=0, atol=1e-6)
    assert (task.threshold != 0.5).all()
    again = Classification(Given(MULTI))
    again.load_state_dict(task.state_dict())  # it is in the checkpoint
    callback = Predictions(tmp_path / "p.parquet")
    told = trainer(callbacks=[callback]).test(
        again, Loaded(logits * 3, targets, [60, 140]), verbose=False
    )[0]
    answer = ((own / task.temperature.item()).sigmoid() >= cut).numpy()
    expected = reference.f1_score(targets.numpy(), answer, average="micro")
    assert told["test/f1"] == pytest.approx(expected, abs=1e-6)
    half = Classification(Given(MULTI), thresholds="half")
    judged(half, logits * 3, targets, [200])
    assert half.threshold.tolist() == [0.5] * 3
    import pandas as pd

    frame = pd.read_parquet(tmp_path / "p.parquet")
    assert frame["id"].tolist() == list(range(200))
    written = np.array([[name in row for name in "xyz"] for row in frame["prediction"]])
    assert (written == answer).all()
    truth = np.array([[name in row for name in "xyz"] for row in frame["label"]])
    assert (truth == targets.numpy().astype(bool)).all()


def test_the_curve_says_how_right_the_sure_answers_are():
    logits, targets = draw(SINGLE, 60)
    task = Classification(Given(SINGLE))
    judged(task, logits, targets, [60])
    scaled = (logits / task.temperature).softmax(1)
    sure, answer = scaled.max(1)
    curve = [row for row in task.curves[0].tolist() if row[0] >= 0]
    for threshold, accuracy, share in curve:
        taken = sure >= threshold - 1e-7
        assert accuracy == pytest.approx((answer == targets[:, 0])[taken].float().mean().item())
        assert share == pytest.approx(taken.float().mean().item())
    assert len(curve) == 60


def test_predictions_of_batches_without_answers_are_written(tmp_path):
    """A batch may hold no label at all, so that its values alone would not tell their type."""
    logits = torch.tensor([[0, 0, 0, -9.0, -9, -9, 1]] * 2 + [[0, 5, 0, 9.0, -9, 9, 2]] * 2)
    empty = [-1, -1, -1, -1, NAN]
    targets = torch.tensor([empty, empty, [1, 1, 0, 1, 0.5], empty])
    callback = Predictions(tmp_path / "p.parquet")
    trainer(callbacks=[callback]).test(
        Classification(Given(SEVERAL)), Loaded(logits, targets, [2, 2]), verbose=False
    )
    import pandas as pd

    frame = pd.read_parquet(tmp_path / "p.parquet")
    assert frame["label_topic"].tolist() == [None, None, "b", None]
    assert [None if row is None else list(row) for row in frame["label_mood"]] == [
        *(None, None, ["x", "z"], None)
    ]
    assert [list(row) for row in frame["prediction_mood"]] == [[], [], ["x", "z"], ["x", "z"]]
    assert frame["label_score"].isna().tolist() == [True, True, False, True]
    assert "probability_score" not in frame


def test_answers_by_hand():
    (single,), (multi,), (measure,) = map(read_heads, (SINGLE, MULTI, MEASURE))
    half = torch.full((3,), 0.5)
    told = read_answers(single, torch.tensor([[0.0, np.log(3), 0.0]]), half)
    assert told.labels == ["b"]
    assert told.probability.item() == pytest.approx(3 / 5)
    logits = torch.tensor([[0.8, 0.3, 0.1], [0.1, 0.2, 0.4]]).logit()
    told = read_answers(multi, logits, torch.tensor([0.5, 0.25, 0.5]))
    assert told.labels == [["x", "y"], []]
    assert told.probability.tolist() == pytest.approx([0.3, 0.6])
    assert read_answers(measure, torch.tensor([[1.5]]), half[:1]).labels == [1.5]


def test_calibration_moves_no_answer_of_classes():
    logits, _ = draw(SEVERAL, 10)
    task = Classification(Given(SEVERAL))
    task.temperature.copy_(torch.tensor([2.0, 4, 8]))
    task.threshold.copy_(torch.tensor([0.5, 0.5, 0.5, 0.2, 0.5, 0.9, 0.5]))
    moved = task.calibrated(logits)
    torch.testing.assert_close(moved[:, :3], logits[:, :3] / 2)
    torch.testing.assert_close(moved[:, 6], logits[:, 6])
    above = (logits[:, 3:6] / 4).sigmoid() >= task.threshold[3:6]
    assert torch.equal(moved[:, 3:6] >= 0, above)
    assert task.answers(1, moved).labels == [
        [name for name, given in zip("xyz", row, strict=True) if given] for row in above.tolist()
    ]


def test_windows_of_an_item_are_averaged():
    values = torch.tensor([[1.0, 0], [3, 4], [5, 6], [7, 8]])
    owner = torch.tensor([0, 1, 1, 2])
    assert mean_by(values, owner, 3).tolist() == [[1, 0], [4, 5], [7, 8]]
    assert mean_by(values.bfloat16(), owner, 3).dtype == torch.float32
    task = Classification(Given(BINARY))
    step = task.step(batch(values, [[0], [1], [1]], owner))
    assert step.prediction.tolist() == [[1, 0], [4, 5], [7, 8]]
    alone = task.step(batch(mean_by(values, owner, 3), [[0], [1], [1]]))
    assert step.loss == alone.loss


def test_a_network_without_heads_is_refused():
    with pytest.raises(UserError, match="a classifier needs heads"):
        Classification(nn.Linear(1, 1))


def test_what_was_measured_is_handed_on():
    class Takes:
        def calibrated(self, *given):
            return given

    task = Classification(Given(SINGLE))
    task.curves[0, 0] = torch.tensor([0.5, 0.75, 1.0])
    temperature, threshold, curves = task.complete(Takes())
    assert (temperature, threshold, curves) == ([1.0], [0.5] * 3, [[[0.5, 0.75, 1.0]]])
    assert task.complete("nothing of the kind") == "nothing of the kind"


def test_what_was_measured_is_taken_over():
    class Calibrated:
        temperature, threshold, curves = [2.0], [0.5, 0.25, 0.75], [[[0.5, 0.75, 1.0]]]

        def calibrated(self):
            raise AssertionError

    task = Classification(Given(SINGLE))
    task.begin_from("nothing of the kind")
    task.begin_from(Calibrated())
    assert (task.temperature.tolist(), task.threshold.tolist()) == ([2.0], [0.5, 0.25, 0.75])
    assert task.curves[0, 0].tolist() == [0.5, 0.75, 1.0]


def test_a_head_without_any_answer_has_no_metric():
    logits, targets = draw(SEVERAL, 8)
    targets[:, 0] = -1
    told = judged(Classification(Given(SEVERAL)), logits, targets, [8])
    assert np.isnan(told["val/accuracy_topic"])
    assert told["val/mae_score"] > 0
