import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from core.errors import UserError
from domains.vision.data import SegmentationData
from domains.vision.own_data import OwnSegmentationData
from domains.vision.segmentation import SemanticSegmentation, weights_of


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def trained(photos, network, folder, epochs=15, **given):
    data = OwnSegmentationData(train=str(photos), batch_size=2, seed=0, **given)
    task = SemanticSegmentation(network, adam)
    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=folder,
        log_every_n_steps=1,
    )
    trainer.fit(task, data)
    return trainer, task, data


def test_colours_are_learnt_and_judged_by_class(photos, tiny, tmp_path):
    trainer, task, data = trained(photos, tiny(heads=2), tmp_path)
    (found,) = trainer.test(task, data, verbose=False)
    assert found["test/miou"] > 0.9
    by_class = [found[f"test/iou/class_{n}"] for n in range(3)]
    assert np.mean(by_class) == pytest.approx(found["test/miou"])
    assert {"test/pixel_accuracy", "test/class_accuracy", "test/loss"} <= found.keys()
    for name, baseline in data.baselines().items():
        batch = next(iter(data.test_dataloader()))
        prediction, target = baseline(batch)
        assert prediction.shape == target.shape
        assert (prediction == target).float().mean() < 0.9, name


@pytest.mark.parametrize("window", [0, 16])
def test_the_size_of_a_batch_and_filling_up_change_no_result(photos, tiny, tmp_path, window):
    from PIL import Image

    Image.new("RGB", (41, 30)).save(photos / "images" / "other_50.png")
    Image.new("L", (41, 30), 2).save(photos / "masks" / "other_50.png")
    results = []
    network = tiny()
    for size in (1, 4):
        data = OwnSegmentationData(
            train=str(photos), val=str(photos), test=str(photos), crop=(16, 16), window=window
        )
        data.eval_batch_size = size
        trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
        task = SemanticSegmentation(network, adam)
        results.append(trainer.test(task, data, verbose=False)[0])
    assert results[0] == pytest.approx(results[1], abs=1e-6)


def test_an_all_void_batch_and_too_few_weights(tiny, photos):
    task = SemanticSegmentation(tiny(heads=1), adam)
    data = OwnSegmentationData(train=str(photos), batch_size=2)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    void = batch._replace(labels=torch.full_like(batch.labels, 255))
    assert task.train().step(void).loss == 0
    assert task.eval().step(void).loss == 0
    plain = task.train().step(batch).loss
    none = SemanticSegmentation(task.network, adam, auxiliary_weights=(0.0,)).train()
    assert plain > none.step(batch).loss
    with pytest.raises(UserError, match="the network has 1 auxiliary outputs"):
        SemanticSegmentation(tiny(heads=1), adam, auxiliary_weights=()).train().step(batch)
    with pytest.raises(UserError, match="give 3 numbers"):
        weights_of((1.0, 2.0), torch.ones(3), ("a", "b", "c"))


def test_weights_of_classes():
    pixels = torch.tensor([10, 40, 1000])
    assert weights_of("median", pixels, "abc").tolist() == pytest.approx([4, 1, 0.04])
    for scheme in ("balanced", "sqrt"):
        found = weights_of(scheme, pixels, "abc")
        assert found.mean() == pytest.approx(1)
        assert found[0] > found[1] > found[2]
    assert weights_of("none", pixels, "abc").tolist() == [1, 1, 1]


@pytest.mark.parametrize("scheme", ["balanced", "sqrt", "median"])
def test_a_class_that_training_lacks_takes_no_weight_from_the_others(scheme):
    plain = weights_of(scheme, torch.tensor([10, 1000]), "ab").tolist()
    found = weights_of(scheme, torch.tensor([10, 0, 1000]), "abc")
    assert found.tolist() == pytest.approx([plain[0], 1, plain[1]])


@pytest.mark.data
def test_camvid(real_data, tiny, tmp_path):
    assert SegmentationData.sizes({"dataset": "camvid"}) == {"classes": 11}
    data = SegmentationData("camvid", size=(60, 80))
    data.setup()
    assert [len(part) for part in data.layout.parts] == [74, 21, 47]
    assert data.facts["setting"] == {"images": 47, "height": 60, "width": 80}
    pixels = data.class_pixels()
    shares = (pixels / pixels.sum()).tolist()
    assert shares[0] == pytest.approx(0.17, abs=0.03)  # sky
    assert shares[3] == pytest.approx(0.33, abs=0.03)  # road
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (8, 3, 60, 80)
    assert batch.images.mean().abs() < 1
    assert "not comparable" in " ".join(data.summary())
