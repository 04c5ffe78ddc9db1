"""Averaged weights are what is validated, kept as best, resumed and tested."""

import shutil
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging as Lightnings
from torch import nn

from core.adapters import LoRA
from core.callbacks.checkpoints import pointed
from core.callbacks.ema import EMAWeightAveraging
from core.checkpoint_io import read_checkpoint

sys.path.insert(0, str(Path(__file__).parent))
import resume_case


class ByHand(pl.Callback):
    """The same average, by its formula, over the parameters alone."""

    def __init__(self, decay, start=0):
        self.decay, self.start, self.average = decay, start, None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        now = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
        if self.average is None or trainer.global_step - 1 <= self.start:
            self.average = now
            return
        self.average = {
            n: self.decay * self.average[n] + (1 - self.decay) * p for n, p in now.items()
        }


class Validated(pl.Callback):
    """Keep the weights of each validation."""

    def __init__(self):
        self.weights = []

    def on_validation_batch_start(self, trainer, pl_module, *_):
        if not trainer.sanity_checking:
            self.weights.append({n: p.detach().clone() for n, p in pl_module.named_parameters()})


class KeepAside(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        folder = Path(trainer.default_root_dir)
        pointer = folder / "checkpoints" / "last"
        if pointer.exists():
            name = folder / f"aside{trainer.global_step:02d}.ckpt"
            if not name.exists():
                shutil.copy(pointed(folder / "checkpoints", "last"), name)


def close(ours, theirs):
    return all(torch.allclose(ours[name], value, atol=1e-6) for name, value in theirs.items())


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("start", [0, 5])
def test_the_average_is_what_is_validated_saved_and_left(tmp_path, accumulate, start):
    byhand, seen = ByHand(0.9, start), Validated()
    ema = EMAWeightAveraging(0.9, update_starting_at_step=start)
    model, data, trainer = resume_case.make(
        tmp_path, extra=[byhand, ema, seen], accumulate_grad_batches=accumulate
    )
    trainer.fit(model, data)
    assert trainer.global_step == {1: 40, 3: 16}[accumulate]
    left = dict(model.named_parameters())
    assert close(left, byhand.average)
    assert close(seen.weights[-1], byhand.average)
    last = read_checkpoint(pointed(tmp_path / "checkpoints", "last"))
    assert close(last["state_dict"], byhand.average)
    assert not close(last["current_model_state"], byhand.average)
    best = read_checkpoint(pointed(tmp_path / "checkpoints", "best"))["state_dict"]
    assert any(close(best, weights) for weights in seen.weights)
    before = trainer.validate(model, data, verbose=False)
    model.load_state_dict(best)
    trainer.validate(model, data, verbose=False)  # judges what was loaded, not the average
    assert close(model.state_dict(), {n: v for n, v in best.items() if n in left})
    assert before


@pytest.mark.parametrize("kind", [EMAWeightAveraging, Lightnings], ids=["ours", "lightning"])
def test_the_best_inside_an_epoch_is_the_average_too(tmp_path, kind):
    seen = Validated()
    model, data, trainer = resume_case.make(
        tmp_path, extra=[kind(decay=0.9), seen], val_check_interval=4, max_epochs=1
    )
    trainer.fit(model, data)
    best = pointed(tmp_path / "checkpoints", "best")
    assert best.name.startswith("weights-step")
    state = read_checkpoint(best)["state_dict"]
    assert any(close(state, weights) for weights in seen.weights)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({"decay": 0.9}, {}),
        ({"decay": 0.9, "update_every_n_steps": 3, "update_starting_at_step": 12}, {}),
        ({"decay": 0.9, "update_starting_at_step": 25}, {}),
        ({"decay": 0.9, "use_buffers": False}, {"accumulate_grad_batches": 3}),
        ({"decay": 0.9}, {"val_check_interval": 4}),
    ],
)
def test_resumed_at_any_step_it_ends_the_same(tmp_path, arguments, settings):
    model, data, trainer = resume_case.make(
        tmp_path / "full", extra=[EMAWeightAveraging(**arguments), KeepAside()], **settings
    )
    trainer.fit(model, data)
    want = {n: v.clone() for n, v in model.state_dict().items()}
    files = sorted((tmp_path / "full").glob("aside*.ckpt"))
    assert len(files) > 10
    for number, file in enumerate(files[::6]):
        again, data, loop = resume_case.make(
            tmp_path / f"{number}", seed=77, extra=[EMAWeightAveraging(**arguments)], **settings
        )
        loop.fit(again, data, ckpt_path=file)
        assert all(torch.equal(want[n], v) for n, v in again.state_dict().items()), file


def test_what_is_measured_in_validation_belongs_to_the_average(tmp_path):
    class Measured(resume_case.Model):
        def __init__(self, *args):
            super().__init__(*args)
            self.register_buffer("measured", torch.zeros(()))

        def on_validation_epoch_end(self):
            weight = self.network[0].weight
            self.measured.copy_(weight.sum().detach())

    _, data, trainer = resume_case.make(tmp_path, extra=[EMAWeightAveraging(0.9)], every=None)
    trainer.fit(Measured("onecycle"), data)
    for pointer in ("best", "last"):
        state = read_checkpoint(pointed(tmp_path / "checkpoints", pointer))["state_dict"]
        assert float(state["measured"]) == pytest.approx(float(state["network.0.weight"].sum()))


def test_buffers_that_no_checkpoint_holds_are_those_of_the_task(tmp_path):
    class Weighted(resume_case.Model):
        def __init__(self, *args):
            super().__init__(*args)
            self.register_buffer("weights", torch.ones(3), persistent=False)
            self.validated = []

        def setup(self, stage):  # after the average was begun
            self.weights.fill_(5.0)

        def on_validation_epoch_end(self):
            self.validated.append(self.weights.tolist())

    for start in (0, 30):
        ema = EMAWeightAveraging(0.9, update_starting_at_step=start)
        keep = KeepAside()
        _, data, trainer = resume_case.make(tmp_path / f"{start}", extra=[ema, keep])
        trainer.fit(model := Weighted("onecycle"), data)
        assert model.validated == [[5.0] * 3] * 5
        ema = EMAWeightAveraging(0.9, update_starting_at_step=start)
        _, data, trainer = resume_case.make(tmp_path / f"again{start}", extra=[ema])
        model = Weighted("onecycle")
        trainer.fit(model, data, ckpt_path=tmp_path / f"{start}" / "aside35.ckpt")
        assert model.validated == [[5.0] * 3]


def test_frozen_weights_and_whole_numbers_stay_to_the_last_bit(tmp_path):
    model, data, trainer = resume_case.make(tmp_path, extra=[EMAWeightAveraging(0.999)])
    model.network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 1))
    model.register_buffer("positions", torch.arange(1000), persistent=False)
    LoRA(model.network, rank=2)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    trainer.fit(model, data)
    assert all(torch.equal(model.get_parameter(n), p) for n, p in frozen.items())
    assert torch.equal(model.positions, torch.arange(1000))


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"decay=1.5 must be from 0"):
        EMAWeightAveraging(1.5)
