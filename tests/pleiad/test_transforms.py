"""Transforms of a network from the command: set, applied, resumed, tested and exported."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from core.callbacks.checkpoints import pointed
from core.checkpoint_io import read_checkpoint
from core.errors import UserError
from core.pretrained import from_pretrained
from pleiad import run as runs
from pleiad.experiments import describe, keys, resolve

NAME = "time_series/itransformer_etth1"
SMALL = [
    *("--model.network.width=16", "--model.network.inner=16", "--model.network.heads=2"),
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2"),
    *("--trainer.limit_test_batches=2", "--trainer.enable_progress_bar=false"),
    "--trainer.log_every_n_steps=1",
]
LORA = ["--transforms=LoRA", "--transforms.0.rank=4"]


def transforms(*overrides):
    return resolve(NAME, overrides).config.get("transforms")


def test_classes_of_lists_are_set_by_their_numbers():
    lora = {"class_path": "core.adapters.LoRA", "init_args": {"rank": 4, "target": ["query"]}}
    given = ["--transforms=lora", "--transforms.0.rank=4", "--transforms.0.target=[query]"]
    assert transforms(*given) == [lora]
    assert transforms("--transforms.0=LoRA", *given[1:]) == [lora]
    assert transforms(*given, "--transforms.0=LoRA") == [lora]
    assert transforms(f"--transforms=[{json.dumps(lora)}]") == [lora]
    assert transforms(*given, "--transforms.0=IA3", "--transforms.1=OFT") == [
        {"class_path": "core.adapters.IA3", "init_args": {}},
        {"class_path": "core.adapters.OFT", "init_args": {}},
    ]
    config = resolve(NAME, given).config
    assert {"transforms.0.rank", "trainer.callbacks.0.patience"} <= set(keys(config))
    assert describe(config, "transforms.0.rank")["default"] == "8"
    assert "network" not in {key.rpartition(".")[2] for key in keys(config) if "forms." in key}


def test_callbacks_are_set_by_their_numbers_too():
    stopping, timer = resolve(
        NAME, ["--trainer.callbacks.0.patience=7", "--trainer.callbacks.1=Timer"]
    ).config["trainer"]["callbacks"]
    assert stopping["init_args"]["patience"] == 7
    assert stopping["init_args"]["monitor"] == "val/loss"
    assert timer == {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {}}
    for name in ("EMAWeightAveraging", "lightning.pytorch.callbacks.EMAWeightAveraging"):
        config = resolve(NAME, [f"--trainer.callbacks={name}"]).config
        (averaging,) = config["trainer"]["callbacks"]
        assert averaging["class_path"] == "core.callbacks.ema.EMAWeightAveraging"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["--transforms=LoRa2"], "no transform 'LoRa2'; there is .*LoRA"),
        (["--transforms.0.rank=4"], "there is no transforms.0; there is none; add one by --transf"),
        (
            ["--transforms=LoRA", "--transforms.2=IA3"],
            r"no transforms.2; there is transforms.0 \(L",
        ),
        (["--transforms=LoRA", "--transforms.x.rank=1"], r"there is no transforms.x"),
        (["--transforms=LoRA", "--transforms.0.rnk=1"], "did you mean transforms.0.rank"),
        (["--transforms=LoRA", "--transforms.0.rank=a"], "transforms.0.rank='a' must be int"),
        (["--transforms=LoRA", "--transforms.0.network=1"], "unknown key transforms.0.network"),
        (["--transforms=[5]"], "transforms.0=5 must name a class"),
        (["--transforms.0=5"], "5 must name a transform"),
        (["--transforms=os.system"], "transforms.0: 'os.system' may not be named"),
        (["--transforms=core.callbacks.signals.Signals"], "is a callback, not a transform"),
        (["--trainer.callbacks.0.patienc=4"], "did you mean trainer.callbacks.0.patience"),
        (["--trainer.callbacks.3.patience=4"], r"there is trainer.callbacks.0 \(EarlyStopping\)"),
    ],
)
def test_mistakes_in_keys_are_told(overrides, told):
    with pytest.raises(UserError, match=told):
        resolve(NAME, overrides)


@pytest.fixture(scope="module")
def finished(real_data, tmp_path_factory):
    """A network trained whole, and one adapted from its weights."""
    folder = tmp_path_factory.mktemp("runs")
    base = runs.fit(NAME, SMALL, runs.Options(run=folder / "base"))
    options = runs.Options(run=folder / "adapted", checkpoint=str(base))
    told: list[str] = []
    adapted = runs.fit(NAME, [*SMALL, *LORA, "--model.optimizer.lr=0.05"], options, told.append)
    return base, adapted, told


@pytest.mark.data
def test_what_a_transform_did_is_told_and_written(finished):
    _, adapted, told = finished
    results = json.loads((adapted / "results.json").read_text())
    (technique,) = results["techniques"]
    assert technique["name"] == "LoRA"
    assert technique["rank"] == 4
    assert technique["layers"] == 13
    assert technique["whole"] == ["head.weight", "head.bias"]
    assert technique["trainable"] == results["parameters"]["trainable"]
    assert results["parameters"]["trainable"] < results["parameters"]["total"]
    assert technique["share"] == pytest.approx(
        technique["trainable"] / results["parameters"]["total"], abs=1e-6
    )
    assert any(line.startswith("LoRA: 13 layers, ") for line in told)
    assert not any("random" in line for line in [*told, *results["warnings"]])


@pytest.mark.data
def test_model_is_plain_and_answers_as_the_adapted_network(finished):
    base, adapted, _ = finished
    first, last = from_pretrained(base), from_pretrained(adapted)
    assert list(first.network.state_dict()) == list(last.network.state_dict())
    assert last.config["transforms"] == []
    moved = [
        name
        for name, value in first.network.state_dict().items()
        if not torch.equal(value, last.network.state_dict()[name])
    ]
    assert len(moved) == 15  # the head, and the weight of each adapted layer
    limits = [override for override in SMALL if "network" not in override]
    given = runs.evaluate(NAME, limits, runs.Options(checkpoint=str(adapted)), "test")["test/mse"]
    tested = runs.evaluate(str(adapted), (), runs.Options(), "test")["test/mse"]
    assert given == pytest.approx(tested, abs=1e-5)
    assert tested != pytest.approx(
        runs.evaluate(str(base), (), runs.Options(), "test")["test/mse"], abs=1e-3
    )


@pytest.mark.data
def test_a_checkpoint_with_adapters_is_no_plain_weights(finished):
    _, adapted, _ = finished
    checkpoint = str(next((adapted / "checkpoints").glob("*.ckpt")))
    with pytest.raises(UserError, match="holds adapters beside the network; take the model/"):
        runs.fit(NAME, SMALL, runs.Options(checkpoint=checkpoint))


@pytest.mark.data
def test_averages_layer_decay_and_accumulation_from_the_configuration(real_data, tmp_path):
    given = [
        *("--trainer.callbacks.1=EMAWeightAveraging", "--trainer.callbacks.1.decay=0.5"),
        *(
            "--trainer.accumulate_grad_batches=2",
            "--model.layer_decay=0.5",
            "--model.interval=step",
        ),
        *("--model.scheduler=WarmupLinear", "--model.decay_all=false"),
    ]
    folder = runs.fit(NAME, [*SMALL, *given], runs.Options(run=tmp_path / "run"))
    best = read_checkpoint(pointed(folder / "checkpoints", "best"))
    assert best["global_step"] == best["lr_schedulers"][0]["total_steps"] == 2
    assert len(best["optimizer_states"][0]["param_groups"]) == 6
    state = from_pretrained(folder).network.state_dict()
    assert all(torch.equal(best["state_dict"][f"network.{n}"], v) for n, v in state.items())
    assert not torch.equal(best["current_model_state"]["network.head.bias"], state["head.bias"])
    results = json.loads((folder / "results.json").read_text())
    assert results["techniques"] == [
        {"name": "layer_decay", "value": 0.5},
        {"name": "EMAWeightAveraging", "decay": 0.5},
        {"name": "gradient_accumulation", "value": 2},
    ]
    written = results["metrics"]["test/mse"]
    assert runs.evaluate(str(folder), (), runs.Options(), "test")["test/mse"] == written
    with pytest.raises(UserError, match="OneCycleLR sets one rate"):
        runs.fit(
            NAME,
            [*SMALL, *given, "--model.scheduler=OneCycleLR", "--model.scheduler.max_lr=0.1"],
            runs.Options(run=tmp_path / "cycle"),
        )
    with pytest.raises(UserError, match="DLinear does not state `stages`"):
        runs.fit("time_series/dlinear_etth1", ["--model.layer_decay=0.5"], runs.Options())


@pytest.mark.data
def test_a_run_with_adapters_goes_on_as_if_it_had_not_stopped(finished, tmp_path, monkeypatch):
    base, _, _ = finished
    given = [*SMALL, *LORA, "--trainer.max_epochs=2"]
    whole = runs.fit(NAME, given, runs.Options(run=tmp_path / "a", checkpoint=str(base)))

    class Stop(BaseException):
        pass

    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("core.callbacks.predictions.Predictions.on_test_end", stop)
        patch.setattr("pleiad.run._finish", stop)
        with pytest.raises(Stop):
            runs.fit(
                NAME,
                [*given, "--trainer.max_epochs=1"],
                runs.Options(run=tmp_path / "b", checkpoint=str(base)),
            )
    going_on = runs.Options(ckpt_path="last")
    again = runs.fit(str(tmp_path / "b"), ["--trainer.max_epochs=2"], going_on)
    ours, theirs = (from_pretrained(folder).network.state_dict() for folder in (whole, again))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert pd.read_csv(again / "metrics.csv")["train/loss"].count() == 6


@pytest.mark.data
def test_a_wrapper_of_ones_own_travels_in_the_model(real_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_wrappers.py").write_text(
        "from core.transform import Transform\n"
        "from torch import nn\n"
        "class Halved(nn.Module):\n"
        "    def __init__(self, network, factor=0.5):\n"
        "        super().__init__()\n"
        "        self.network, self.factor = network, factor\n"
        "    def forward(self, past, *marks):\n"
        "        return self.factor * self.network(past, *marks)\n"
        "    takes_marks = True\n"
        "class NoDropout(Transform):\n"
        "    def __init__(self, network):\n"
        "        for module in network.modules():\n"
        "            if isinstance(module, nn.Dropout):\n"
        "                module.p = 0.0\n"
        "        super().__init__(network)\n"
    )
    given = "--transforms=[own_wrappers.Halved, own_wrappers.NoDropout, LoRA]"
    options = runs.Options(run=tmp_path / "run", trust=("own_wrappers",))
    folder = runs.fit(NAME, [*SMALL, given, "--transforms.0.factor=0.25"], options)
    loaded = from_pretrained(folder, trust=("own_wrappers",))
    assert type(loaded.network).__name__ == "Halved"
    assert loaded.network.factor == 0.25
    assert [t["class_path"] for t in loaded.config["transforms"]] == [
        "own_wrappers.Halved",
        "own_wrappers.NoDropout",
    ]
    results = json.loads((folder / "results.json").read_text())
    assert [t["name"] for t in results["techniques"]] == ["Halved", "NoDropout", "LoRA"]
    assert any("holds random values" in warning for warning in results["warnings"])
    with pytest.raises(UserError, match="not a class of the suite"):
        from_pretrained(folder)


@pytest.mark.data
def test_compression_beside_a_freezing_that_changes_each_step(real_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_freezing.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Turns(Callback):\n"
        "    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):\n"
        "        for number, parameter in enumerate(pl_module.network.parameters()):\n"
        "            parameter.requires_grad_(number % 3 == batch_idx % 3)\n"
        "        self.seen = pl_module.network.forward.policy.passes\n"
        "    def on_train_end(self, trainer, pl_module):\n"
        "        assert self.seen == 2\n"
    )
    given = ["--transforms=ActivationCompression", "--transforms.0.exclude=head"]
    callback = "--trainer.callbacks=own_freezing.Turns"
    options = runs.Options(run=tmp_path / "run", trust=("own_freezing",))
    told: list[str] = []
    folder = runs.fit(NAME, [*SMALL, *given, callback], options, told.append)
    results = json.loads((folder / "results.json").read_text())
    technique = results["techniques"][0]
    assert technique["name"] == "ActivationCompression"
    assert technique["covered"]["LayerNorm"] == 5
    assert technique["ln_mode"] == "int8"
    assert technique["operations"]["layer_norm"] > 0  # met in training
    loaded = from_pretrained(folder)
    assert loaded.config["transforms"] == []
    assert "forward" not in vars(loaded.network)
    state = read_checkpoint(pointed(folder / "checkpoints", "best"))["state_dict"]
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, state[f"network.{name}"])
