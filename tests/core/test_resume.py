"""A run that was interrupted and resumed is the run that was not, bit for bit."""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from core.errors import UserError
from core.length_plan import Lengths

CASE = Path(__file__).with_name("resume_case.py")
sys.path.insert(0, str(CASE.parent))
import resume_case  # noqa: E402


class KeepAll(Callback):
    """Copy every checkpoint aside, since only the last and the best stay."""

    def __init__(self, aside: Path) -> None:
        self.aside = aside
        aside.mkdir()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._copy(trainer)

    def on_train_end(self, trainer, pl_module):
        self._copy(trainer)

    def _copy(self, trainer):
        for file in (Path(trainer.default_root_dir) / "checkpoints").glob("epoch*.ckpt*"):
            if not (self.aside / file.name).exists():
                shutil.copy(file, self.aside)


def outcome(model, trainer):
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    return weights, trainer.optimizers[0].state_dict() if trainer.optimizers else None


def metrics(folder: Path) -> str:
    return (folder / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("schedule", "interval"),
    [
        pytest.param("onecycle", 1.0, marks=pytest.mark.slow),
        ("onecycle", 4),
        pytest.param("epoch", 1.0, marks=pytest.mark.slow),
    ],
)
def test_resume_from_every_step(tmp_path, schedule, interval):
    full = tmp_path / "full"
    settings = {"schedule": schedule, "val_check_interval": interval}
    keep = KeepAll(tmp_path / "aside")
    model, data, trainer = resume_case.make(full, extra=[keep], **settings)
    trainer.fit(model, data)
    want, _ = outcome(model, trainer)
    saved = sorted((tmp_path / "aside").glob("*.ckpt"))
    assert len(saved) == (40 if interval == 1.0 else 32)  # not where a validation follows
    for checkpoint in saved:
        step = int(checkpoint.stem.split("=")[-1])
        again = tmp_path / f"from{step}"
        again.mkdir()
        shutil.copy(full / "metrics.csv", again)
        resumed, data, trainer = resume_case.make(again, seed=77, **settings)
        trainer.fit(resumed, data, ckpt_path=checkpoint)
        assert trainer.global_step == 40
        assert resumed.losses == model.losses[step:]
        assert all(torch.equal(want[name], value) for name, value in resumed.state_dict().items())
        assert metrics(again) == metrics(full)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 2)])
def test_resume_with_workers(tmp_path, before, after):
    keep = KeepAll(tmp_path / "aside")
    model, data, trainer = resume_case.make(tmp_path / "full", workers=before, extra=[keep])
    trainer.fit(model, data)
    for step in (3, 10, 17):  # 10 is an epoch's last batch
        (checkpoint,) = (tmp_path / "aside").glob(f"*step={step:07d}.ckpt")
        resumed, data, trainer = resume_case.make(tmp_path / str(step), workers=after, seed=77)
        trainer.fit(resumed, data, ckpt_path=checkpoint)
        assert resumed.losses == model.losses[step:]


def test_accumulated_batches_are_never_split(tmp_path):
    settings = {"accumulate_grad_batches": 3}
    keep = KeepAll(tmp_path / "aside")
    model, data, trainer = resume_case.make(tmp_path / "full", extra=[keep], **settings)
    trainer.fit(model, data)
    want = {k: v.clone() for k, v in model.state_dict().items()}
    saved = sorted((tmp_path / "aside").glob("*.ckpt"))
    assert len(saved) > 10
    for number, checkpoint in enumerate(saved):
        resumed, data, trainer = resume_case.make(tmp_path / f"{number}", seed=77, **settings)
        trainer.fit(resumed, data, ckpt_path=checkpoint)
        assert all(torch.equal(want[name], value) for name, value in resumed.state_dict().items())


def test_resume_inside_an_epoch_of_length_batches(tmp_path):
    keep = KeepAll(tmp_path / "aside")
    settings = {"kind": resume_case.LengthData, "max_epochs": 3}
    model, data, trainer = resume_case.make(tmp_path / "full", extra=[keep], **settings)
    trainer.fit(model, data)
    batches = len(data.plan())
    assert trainer.global_step == len(model.losses) == 3 * batches
    assert len({len(batch) for batch in data.plan().iterate(1, 0)}) > 1
    for number, step in enumerate((1, batches - 1, batches, batches + 7, 2 * batches + 3)):
        (checkpoint,) = (tmp_path / "aside").glob(f"*step={step:07d}.ckpt")
        settings["workers"] = number % 2
        resumed, data, trainer = resume_case.make(tmp_path / str(step), seed=77, **settings)
        trainer.fit(resumed, data, ckpt_path=checkpoint)
        assert resumed.losses == model.losses[step:]
        want = model.state_dict()
        assert all(torch.equal(want[name], value) for name, value in resumed.state_dict().items())


def test_changed_lengths_are_refused(tmp_path, monkeypatch):
    settings = {"kind": resume_case.LengthData, "max_epochs": 1}
    trainer = resume_case.make(tmp_path, **settings)[2]
    trainer.fit(*resume_case.make(tmp_path, **settings)[:2])
    checkpoint = next((tmp_path / "checkpoints").glob("*.ckpt"))
    for budget, length, said in ((256, 1, "token_budget was 128 .* 256 now"), (128, 9, "lengths")):
        monkeypatch.setattr(
            resume_case.LengthData,
            "lengths",
            lambda self, found, budget=budget, length=length: Lengths(
                [length] * len(found), budget
            ),
        )
        model, data, trainer = resume_case.make(tmp_path / "again", **settings)
        with pytest.raises(UserError, match=said):
            trainer.fit(model, data, ckpt_path=checkpoint)


def test_changed_data_is_refused(tmp_path):
    model, data, trainer = resume_case.make(tmp_path, max_epochs=1)
    trainer.fit(model, data)
    model, data, trainer = resume_case.make(tmp_path / "again")
    data.batch_size = 4
    checkpoint = next((tmp_path / "checkpoints").glob("*.ckpt"))
    with pytest.raises(
        UserError, match="batch_size was 8 when the run was interrupted and is 4 now"
    ):
        trainer.fit(model, data, ckpt_path=checkpoint)


def _child(folder: Path, workers: int) -> None:
    os.setsid()  # so that a kill takes the data workers along
    warnings.simplefilter("ignore")
    resume_case.main(folder, workers, folder / "seen")


def start(folder: Path, workers: int) -> BaseProcess:
    """Start a run in a fork of this process, where everything heavy is imported already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        process = multiprocessing.get_context("fork").Process(target=_child, args=(folder, workers))
        process.start()
    return process


def finish(folder: Path, workers: int) -> dict:
    process = start(folder, workers)
    process.join(timeout=120)
    assert process.exitcode == 0
    return json.loads((folder / "outcome.json").read_text())


def wait(process: BaseProcess, folder: Path, steps: int) -> None:
    """Wait until a run has begun so many steps, or has ended."""
    seen = folder / "seen"
    while process.is_alive() and not (seen.exists() and len(seen.read_text().split()) > steps):
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [0, 2])
def test_sigkill_at_random_moments(tmp_path, workers):
    full = tmp_path / "full"
    full.mkdir()
    want = finish(full, workers)
    draw = random.Random(workers)
    killed = 0
    for number in range(10):
        folder = tmp_path / f"killed{number}"
        folder.mkdir()
        process = start(folder, workers)
        wait(process, folder, draw.randrange(40))
        time.sleep(draw.random() * 0.03)
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert finish(folder, workers) == want
        assert metrics(folder) == metrics(full)
        assert not list((folder / "checkpoints").glob(".*"))  # no orphans after the next start
    assert killed >= 5


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_leaves(tmp_path, number, status):
    full = tmp_path / "full"
    full.mkdir()
    want = finish(full, 0)
    for attempt in range(5):
        folder = tmp_path / f"stopped{attempt}"
        folder.mkdir()
        process = start(folder, 0)
        wait(process, folder, 12)
        os.kill(process.pid, number)
        process.join(timeout=60)
        if process.exitcode != 0:  # on a busy machine it may have ended by itself
            break
    assert process.exitcode == status
    assert finish(folder, 0) == want
