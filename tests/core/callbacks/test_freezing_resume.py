"""A run that freezes, interrupted anywhere and resumed, freezes and ends as one that was not."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from core.callbacks.checkpoints import pointed
from core.callbacks.freezing import AutoFreeze, BlockCoordinate, FreezeOut, SlimFit
from core.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
import resume_case
from freezing_case import SCHEDULES, Net

ALL = {
    **SCHEDULES,
    "long": lambda: AutoFreeze(interval=7),
    "blocks": lambda: BlockCoordinate(every=7, order="random", rate_per_sweep=True),
    "freezeout": lambda: FreezeOut(t0=0.5),
    "legacy": lambda: SlimFit(freezing_rate=0.6, mode="legacy"),
    "reset_m": lambda: SlimFit(freezing_rate=0.6, momentum="reset_m"),
}


class KeepAside(resume_case.pl.Callback):
    """Copy each checkpoint, since only the last one stays."""

    def on_train_batch_start(self, trainer, *_):
        folder = Path(trainer.default_root_dir)
        name = folder / f"aside{trainer.global_step:02d}.ckpt"
        if (folder / "checkpoints" / "last").exists() and not name.exists():
            shutil.copy(pointed(folder / "checkpoints", "last"), name)


class Trace(resume_case.pl.Callback):
    """Which parameters train in which step."""

    def __init__(self):
        self.sets = {}

    def on_before_backward(self, trainer, pl_module, loss):
        names = [n for n, p in pl_module.named_parameters() if p.requires_grad]
        before = self.sets.setdefault(trainer.global_step, names)
        assert before == names  # one set for all accumulated batches


def make(folder, schedule, name, **settings):
    trace = Trace()
    model, data, trainer = resume_case.make(folder, extra=[schedule, trace], **settings)
    torch.manual_seed(5)
    model.network = Net(nn.BatchNorm1d, dropout=0.2)
    if name == "freezeout":
        model.configure_optimizers = lambda: torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, data, trainer, trace


ONE = pytest.param({}, marks=pytest.mark.slow, id="1")
THREE = pytest.param({"accumulate_grad_batches": 3}, id="3")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("settings", [ONE, THREE])
def test_the_same_sets_and_weights(tmp_path, name, settings):
    model, data, trainer, trace = make(tmp_path / "full", ALL[name](), name, **settings)
    trainer.callbacks.insert(0, KeepAside())
    trainer.fit(model, data)
    want = {n: v.clone() for n, v in model.state_dict().items()}
    assert len({tuple(each) for each in trace.sets.values()}) > 1
    files = sorted((tmp_path / "full").glob("aside*.ckpt"))
    assert len(files) > 8
    for number, file in enumerate(files[2::7]):
        again, data, loop, left = make(
            tmp_path / f"{number}", ALL[name](), name, seed=77, **settings
        )
        loop.fit(again, data, ckpt_path=file)
        assert left.sets
        assert all(trace.sets[step] == names for step, names in left.sets.items()), file
        assert all(torch.equal(want[n], v) for n, v in again.state_dict().items()), file


def test_other_units_than_the_checkpoint_has_are_refused(tmp_path):
    model, data, trainer, _ = make(tmp_path / "one", SlimFit(freezing_rate=0.5), "", max_epochs=1)
    trainer.fit(model, data)
    file = next((tmp_path / "one" / "checkpoints").glob("*.ckpt"))
    model, data, trainer, _ = make(tmp_path / "two", SlimFit(exclude="head"), "")
    with pytest.raises(UserError, match=r"froze other units \(10\) than there are now \(9\)"):
        trainer.fit(model, data, ckpt_path=file)
