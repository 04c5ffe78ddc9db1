"""What a recipe sets otherwise at other horizons, in the shipped experiments and in a user's."""

from pathlib import Path

import pytest

from core.errors import UserError
from pleiad import building
from pleiad.experiments import changed, flat, load, names, resolve

COUNTS = {  # as published; of S-Mamba what its forward pass uses
    ("s_mamba_etth1", 96): 1_145_696,
    ("s_mamba_ettm1", 192): 314_944,
    ("s_mamba_weather", 96): 6_631_008,
    ("s_mamba_electricity", 96): 6_760_032,
    ("s_mamba_electricity", 192): 6_956_736,
    ("s_mamba_exchange", 96): 348_640,
    ("s_mamba_traffic", 96): 9_176_672,
    ("autoformer_etth1", 336): 10_535_943,
    ("autoformer_illness", 24): 10_535_943,
    ("autoformer_ettm2", 96): 10_536_967,
    ("autoformer_exchange", 192): 10_541_064,
    ("autoformer_weather", 96): 10_607_637,
    ("autoformer_electricity", 96): 12_143_937,
    ("autoformer_traffic", 96): 14_914_398,
}
BLOCKS = [
    (name, key, value)
    for name in names()
    for key, blocks in load(name).settings.items()
    for value in blocks
]


def values(name, *overrides):
    return dict(flat(resolve(name, overrides).config))


@pytest.mark.parametrize(("experiment", "count"), COUNTS.items(), ids=str)
def test_published_sizes(experiment, count):
    name, horizon = experiment
    built = building.build(resolve(f"time_series/{name}", [f"--data.horizon={horizon}"]))
    assert sum(p.numel() for p in built.task.network.parameters()) == count


@pytest.mark.parametrize(("name", "key", "value"), BLOCKS, ids=str)
def test_every_block_is_taken_and_is_the_recipe(name, key, value):
    given = values(name, f"--{key}={value}")
    block = load(name).settings[key][value]
    assert {inner: given[inner] for inner in block} == block
    assert changed(resolve(name, [f"--{key}={value}"]).config, name) == {}


def test_a_block_yields_to_the_command_line_and_is_not_the_recipe_then():
    name, rate = "time_series/s_mamba_etth1", "model.optimizer.lr"
    assert values(name)[rate] == 7e-5
    assert values(name, "--data.horizon", "336")[rate] == 5e-5
    assert values(name, "--data.horizon=100")[rate] == 7e-5
    for order in (
        ["--data.horizon=336", f"--{rate}=1e-3"],
        [f"--{rate}=1e-3", "--data.horizon=336"],
    ):
        assert values(name, *order)[rate] == 1e-3
        assert changed(resolve(name, order).config, name) == {rate: 1e-3}
    assert changed(resolve(name, ["--data.horizon=100"]).config, name) == {"data.horizon": 100}


def test_a_block_is_for_its_own_network_only():
    given = values("time_series/s_mamba_ettm1", "--data.horizon=192", "--model.network=DLinear")
    assert "model.network.width" not in given


def test_blocks_of_a_users_own_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = Path(__file__).parents[2].joinpath("configs/time_series/dlinear_etth1.yaml").read_text()
    mine = Path("mine.yaml")
    mine.write_text(f"{text}settings:\n  data.batch_size:\n    8: {{trainer.max_epochs: 3}}\n")
    assert values("mine.yaml", "--data.batch_size=8")["trainer.max_epochs"] == 3
    assert values("mine.yaml")["trainer.max_epochs"] != 3


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("[1]", "settings: write KEY: "),
        ("{data.horizon: 192}", "data.horizon holds 192"),
        ("{data.horizon: {192: 5}}", "data.horizon holds"),
        ("{data.horzon: {192: {}}}", "unknown key data.horzon; did you mean data.horizon"),
        ("{data.horizon: {192: {model.optimizer.lrr: 1}}}", "did you mean model.optimizer.lr"),
        ("{data.horizon: {192: {modell.x: 1}}}", "unknown key modell.x"),
    ],
)
def test_bad_settings_are_told(tmp_path, monkeypatch, settings, told):
    monkeypatch.chdir(tmp_path)
    text = Path(__file__).parents[2].joinpath("configs/time_series/dlinear_etth1.yaml").read_text()
    Path("mine.yaml").write_text(f"{text}settings: {settings}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: settings") as error:
        resolve("mine.yaml", ["--data.horizon=192"])
    assert told in str(error.value)
