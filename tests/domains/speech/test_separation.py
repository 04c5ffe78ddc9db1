"""The task trains, judges each mixture at its own length, and reproduces known scores."""

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from lightning.pytorch import Trainer, seed_everything
from torchmetrics.functional.audio import (
    scale_invariant_signal_distortion_ratio,
    signal_distortion_ratio,
)

import data as catalogue
from core.callbacks.predictions import Predictions
from core.errors import UserError
from domains.speech import metrics, separation
from domains.speech.baselines import ideal_ratio_mask, unprocessed
from domains.speech.data import SeparationData
from domains.speech.digits import DigitMixtures
from domains.speech.estimates import unpacked
from domains.speech.metrics import improvement, thorough
from domains.speech.mixtures import Mixture, collate
from domains.speech.own_data import OwnSeparationData
from domains.speech.separation import Separation


def drawn(lengths=(900, 640), speakers=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    items = []
    for row, length in enumerate(lengths):
        sources = torch.randn(speakers, length, generator=generator)
        items.append(Mixture(sources.sum(0), sources, row, f"m{row}"))
    return collate(items)


def test_a_batch_is_filled_up_with_zeros():
    batch = drawn()
    assert batch.lengths.tolist() == [900, 640]
    assert not batch.mixture[1, 640:].any()
    assert not batch.sources[1, :, 640:].any()
    assert batch.names == ["m0", "m1"]


def test_no_network_sees_the_zeros_that_fill_up_a_batch(separator):
    task = Separation(separator())
    batch = drawn()
    together = task(batch)
    alone = task(drawn((640,), seed=1)._replace(mixture=batch.mixture[1:, :640]))
    torch.testing.assert_close(together[1:, :, :640], alone)
    assert not together[1, :, 640:].any()
    naive = task.network(batch.mixture)
    assert not torch.allclose(naive[1, :, :640], alone[0])


def test_estimates_are_answered_in_the_order_of_the_references(separator):
    task = Separation(separator(), threshold=None)
    batch = drawn()
    task.forward = lambda batch: batch.sources.flip(1)
    step = task.step(batch)
    assert torch.equal(step.prediction, batch.sources)
    assert step.loss < -60


def test_easy_mixtures_count_in_validation_alone(separator):
    task = Separation(separator(), threshold=-30)
    task.forward = lambda batch: batch.sources.clone().requires_grad_()
    assert task.train().step(drawn()).loss == 0
    assert task.eval().step(drawn()).loss < -60


def test_the_metrics_are_those_of_torchmetrics():
    batch = drawn()
    estimates = batch.sources + 0.5 * torch.randn_like(batch.sources)
    found = thorough(estimates.flip(1), *batch[1:2], batch.mixture, batch.lengths, 8000)
    for at, length in enumerate(batch.lengths.tolist()):
        own, truth = estimates[at, :, :length], batch.sources[at, :, :length]
        start = batch.mixture[at, :length].expand_as(truth)
        after, before = (
            scale_invariant_signal_distortion_ratio(x, truth, zero_mean=True).mean()
            for x in (own, start)
        )
        torch.testing.assert_close(found["si_sdr"][at], after, atol=1e-3, rtol=0)
        torch.testing.assert_close(found["si_sdr_i"][at], after - before, atol=1e-3, rtol=0)
    straight = thorough(estimates, *batch[1:2], batch.mixture, batch.lengths, 8000)
    own, truth = estimates[0].double(), batch.sources[0].double()
    gain = signal_distortion_ratio(own, truth).mean()
    gain = gain - signal_distortion_ratio(batch.mixture[0].double().expand_as(truth), truth).mean()
    assert straight["sdr_i"][0].item() == pytest.approx(gain.item(), abs=1e-3)


def test_silent_references_count_in_no_metric():
    batch = drawn((800, 800))
    batch.sources[1, 1] = 0
    mixture = batch.sources.sum(1)
    estimates = batch.sources + 0.1 * torch.randn_like(batch.sources)
    found = thorough(estimates, batch.sources, mixture, batch.lengths, 8000)
    assert found["by_talker"].isnan().tolist() == [[False, False], [False, True]]
    assert found["si_sdr"].isfinite().all()
    assert found["si_sdr_i"].isnan().tolist() == [False, True]  # a single talker: nothing to gain
    assert found["sdr_i"].isnan().tolist() == [False, True]
    average = metrics.Average("si_sdr_i")
    average.update(found)
    assert average.compute() == found["si_sdr_i"][0]


def test_pesq_and_stoi_where_they_are_installed():
    for package in ("pesq", "pystoi"):
        pytest.importorskip(package)
    time = torch.arange(16000) / 8000
    talk = torch.sin(1200 * time) * (torch.sin(12 * time) > 0) + 0.01 * torch.randn(16000)
    batch = drawn((16000,))
    batch.sources[0, 0] = talk
    found = thorough(batch.sources, batch.sources, batch.mixture, batch.lengths, 8000)
    assert found["stoi"].item() == pytest.approx(1, abs=1e-3)
    assert found["pesq"].item() > 4


def test_the_baselines_bound_a_network():
    batch = drawn((4000, 3000))
    time = torch.arange(4000) / 8000
    for row, pitch in ((0, 300.0), (1, 900.0)):
        batch.sources[:, row] = torch.sin(2 * torch.pi * pitch * time) * (batch.mixture != 0)
    batch = batch._replace(mixture=batch.sources.sum(1))

    def score(baseline):
        found = improvement(*baseline(batch), batch.mixture, batch.lengths)
        return found["si_sdr_i"].mean().item()

    assert score(unprocessed) == pytest.approx(0, abs=1e-4)
    assert score(ideal_ratio_mask) > 15


def trained(task, data, tmp_path, **changes):
    trainer = Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "logger": False, **changes},
        callbacks=[Predictions(tmp_path / "predictions.parquet")],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, data)
    (found,) = trainer.test(task, data, verbose=False)
    return found


def test_mixed_precision_is_judged_in_float32(separator):
    task = Separation(separator())
    batch = drawn((640, 640))
    network = task.network
    task.forward = lambda batch: network(batch.mixture).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        step = task.step(batch)
    assert step.prediction.dtype == torch.bfloat16
    assert step.loss.dtype == torch.float32
    step.loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_a_run_leaves_scores_pictures_and_sound(talkers, tmp_path, separator, monkeypatch):
    monkeypatch.setattr(separation, "KEPT", 2)
    seed_everything(0)
    data = OwnSeparationData(
        str(talkers),
        split="random",
        mixtures=8,
        val_mixtures=2,
        test_mixtures=5,
        overlap=(0.2, 0.6),
        eval_batch_size=2,
        segment=0.2,
        batch_size=4,
    )
    task = Separation(separator())
    found = trained(task, data, tmp_path)
    assert {"test/loss", "test/si_sdr", "test/si_sdr_i", "test/sdr_i"} <= set(found)
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert table["id"].tolist() == list(range(5))
    assert table["si_sdr_i"].mean() == pytest.approx(found["test/si_sdr_i"], abs=1e-4)
    assert table["si_sdr"].mean() == pytest.approx(-found["test/loss"], abs=1e-3)
    assert [len(content) > 0 for content in table["estimates"]] == [True, True, False, False, False]
    item = data.test_set[1]
    assert unpacked(table["estimates"][1]).shape == tuple(item.sources.shape)
    folder = tmp_path / "pictures"
    folder.mkdir()
    drawn = data.pictures(tmp_path / "predictions.parquet", folder)
    assert {path.name for path in drawn} >= {"improvement.png", "spectrograms.png"}
    heard = next(path for path in drawn if path.name.endswith("_mixture.wav"))
    row = int(heard.name.removeprefix("test").split("_")[0])
    samples, rate = soundfile.read(heard)
    assert rate == 8000
    assert abs(samples - data.test_set[row].mixture.numpy()).max() < 1e-4


def test_the_size_of_an_evaluation_batch_changes_no_result(talkers, tmp_path, separator):
    found = []
    for size in (1, 5):
        torch.manual_seed(0)
        data = OwnSeparationData(
            str(talkers),
            split="random",
            test_mixtures=5,
            length="max",
            mixtures=2,
            val_mixtures=1,
            eval_batch_size=size,
        )
        found.append(trained(Separation(separator()), data, tmp_path, max_epochs=0))
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.data
def test_published_estimates_have_their_published_score(real_data):
    """Mean 21.62, median 22.06 and least 13.77 dB of the 36 mixtures of Libri2Mix."""
    folder = catalogue.locate("libri2mix_samples")
    data = SeparationData("libri2mix_samples")
    data.setup()
    assert len(data.test_set) == 36
    gains = []
    for row in range(36):
        item = data.test_set[row]
        hats = [folder / f"{item.name}_source{n}hat.wav" for n in (2, 1)]
        estimates = torch.stack(
            [torch.from_numpy(soundfile.read(p, dtype="float32")[0]) for p in hats]
        )
        batch = collate([item])
        found = improvement(estimates[None], batch.sources, batch.mixture, batch.lengths)
        gains.append(found["si_sdr_i"].item())
    assert np.mean(gains) == pytest.approx(21.62, abs=0.005)
    assert np.median(gains) == pytest.approx(22.06, abs=0.005)
    assert min(gains) == pytest.approx(13.77, abs=0.005)


def test_talkers_that_the_digits_lack_are_refused():
    with pytest.raises(UserError, match=r"talkers=.*bob.*give some of george, jackson"):
        DigitMixtures(talkers=["bob"])
    with pytest.raises(UserError, match=r"--data\.setting=known"):
        DigitMixtures(setting="unseen", talkers=["theo"])
    with pytest.raises(UserError, match=r"data\.seconds=0"):
        DigitMixtures(seconds=0)


@pytest.mark.data
def test_digits_are_divided_by_number_or_by_talker(real_data):
    def parts(setting, **changes):
        data = DigitMixtures(setting=setting, test_mixtures=2, **changes)
        data.setup()
        return [own.mixer.recordings for own in data.parts.sets], data

    known, data = parts("known")
    assert [len(part) for part in known] == [2400, 300, 300]
    assert {int(own.path.stem[-1]) for own in known[2]} == set(range(5))
    item = data.test_set[0]
    assert item.sources.shape == (2, 8000)
    assert torch.equal(item.mixture, data.test_set[0].mixture)
    unseen, _ = parts("unseen")
    assert {own.talker for own in unseen[2]} == {"theo", "yweweler"}
    assert not {own.talker for own in unseen[0]} & {"theo", "yweweler"}
    assert not {own.id for own in unseen[0]} & {own.id for own in unseen[1]}
    pair, _ = parts("known", talkers=["jackson", "nicolas"])
    assert [len(part) for part in pair] == [800, 100, 100]
