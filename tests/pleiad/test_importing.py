"""Published weights, imported, answer as published."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.errors import UserError
from core.pretrained import from_pretrained
from pleiad import command, importing, listing, registry

CONFIG = {"seq_len": 96, "pred_len": 96, "enc_in": 7}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLEIAD_RUN", raising=False)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Weights of a DLinear by their published names."""
    torch.manual_seed(0)
    names = ("Linear_Seasonal", "Linear_Trend")
    shapes = {f"{name}.weight": (96, 96) for name in names}
    shapes |= {f"{name}.bias": (96,) for name in names}
    return {name: 0.01 * torch.randn(shape) for name, shape in shapes.items()}


def told(*arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        command.run(["import", *map(str, arguments)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("system", "name", "output"),
    [
        ("autoformer", "autoformer_a", "eval"),
        ("autoformer", "autoformer_b_longdec", "eval"),
        ("s_mamba", "smamba_norm_marks", "eval"),
    ],
)
def test_equals_published_outputs_after_an_import(golden, system, name, output, capsys):
    file = golden(name)
    torch.save({"config": file["config"], "state_dict": file["state_dict"]}, "published.pt")
    command.run(["import", system, "published.pt", "--output=model"])
    assert "licence not stated" in capsys.readouterr().out
    given = file["inputs"]
    inputs = [given[key] for key in ("x_enc", "x_mark_enc", "x_mark_dec") if key in given]
    with torch.no_grad():
        forecast = from_pretrained("model").network(*inputs)
    torch.testing.assert_close(forecast, file["outputs"][output], atol=5e-6, rtol=0)


def test_every_form_of_a_checkpoint(state):
    torch.save({"config": CONFIG, "state_dict": state}, "both.pt")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, "bare.pth")
    save_file(state, "w.safetensors")
    Path("folder").mkdir()
    save_file(state, "folder/weights.safetensors")
    Path("folder/config.json").write_text(json.dumps(CONFIG))
    Path("c.yaml").write_text("seq_len: 96\npred_len: 96\nenc_in: 7\n")
    for number, given in enumerate(
        (
            ["both.pt"],
            ["bare.pth", "--config=c.yaml"],
            ["w.safetensors", "--config=c.yaml"],
            ["folder"],
        )
    ):
        command.run(["import", "dlinear", *given, f"--output=m{number}"])
        found = from_pretrained(f"m{number}").network.state_dict()
        assert torch.equal(found["trend_map.0.bias"], state["Linear_Trend.bias"])


@pytest.mark.data
def test_imported_weights_are_judged_on_a_benchmark(real_data, state, capsys):
    torch.save({"config": CONFIG, "state_dict": state}, "both.pt")
    licence = "--licence=CC BY-NC 4.0"
    command.run(["import", "dlinear", "both.pt", "--output=model", licence])
    assert "forbids commercial use" in capsys.readouterr().out
    given = ["--checkpoint=model", "--run=judged", "--trainer.enable_progress_bar=false"]
    given += ["--data.lookback=96", "--trainer.accelerator=cpu"]
    command.run(["test", "time_series/dlinear_etth1", *given])
    results = json.loads(Path("judged/results.json").read_text())
    assert results["checkpoint"]["licence"] == "CC BY-NC 4.0"
    assert results["checkpoint"]["source"] == "both.pt"
    assert any("forbids commercial use" in line for line in results["warnings"])
    assert results["metrics"]["test/mse"] > 0.3
    with pytest.raises(UserError, match="records no experiment; name one"):
        command.run(["test", "model"])


def test_mistakes(state):
    save_file(state, "w.safetensors")
    assert "give them by --config FILE" in told("dlinear", "w.safetensors", "--output=m")
    Path("c.json").write_text(json.dumps({**CONFIG, "sequence": 3}))
    given = ("w.safetensors", "--config=c.json", "--output=m")
    assert "unknown sequence" in told("dlinear", *given)
    Path("c.json").write_text(json.dumps({**CONFIG, "pred_len": 48}))
    assert "Linear_Trend.bias is (96,), needed (48,)" in told("dlinear", *given)
    assert "did you mean dlinear?" in told("dlinar", *given)
    assert "no network is built" in told("structural_recursion", *given)
    assert "no such file" in told("dlinear", "none.pt", "--output=m")
    Path("bad.safetensors").write_text("hello")
    assert "not a readable safetensors" in told("dlinear", "bad.safetensors", "--output=m")
    torch.save([1, 2], "list.pt")
    assert "neither `state_dict` nor tensors" in told("dlinear", "list.pt", "--output=m")
    Path("empty").mkdir()
    assert "name the file of the weights" in told("dlinear", "empty", "--output=m")
    assert not Path("m").exists()
    Path("m").mkdir()
    Path("m/mine").touch()
    assert "is not empty" in told("dlinear", *given)


def test_code_in_a_file_is_not_run(state):
    class Evil:
        def __reduce__(self):
            return open, ("ran", "w")

    torch.save({"state_dict": state, "config": Evil()}, "evil.pt")
    assert "could run code" in told("dlinear", "evil.pt", "--output=m")
    assert not Path("ran").exists()


def test_known_checkpoints_are_listed_and_bring_their_licence(state, monkeypatch, capsys):
    assert listing.render("checkpoints", "json", domain="security") == "[]"
    assert listing.render("checkpoints", domain="security") == listing.NO_CHECKPOINTS
    assert '"commercial_use": "no"' in listing.render("checkpoints", "json")
    text = registry.PATH.read_text().replace(
        "    name: dlinear\n",
        "    name: dlinear\n    checkpoints:\n"
        "      - {name: both, source: owner/both, licence: CC BY-NC 4.0, commercial_use: 'no',"
        " bytes: null, note: of a test}\n",
    )
    Path("systems.yaml").write_text(text)
    read = registry.load(Path("systems.yaml"))
    monkeypatch.setattr(registry, "registry", lambda: read)
    command.run(["list", "checkpoints", "--domain=time_series", "--format=md"])
    assert "| dlinear | both | owner/both | CC BY-NC 4.0 | no |" in capsys.readouterr().out
    torch.save({"config": CONFIG, "state_dict": state}, "both.pt")
    importing.import_weights("dlinear", Path("both.pt"), Path("m"))
    config = from_pretrained("m").config
    assert (config["source"], config["commercial_use"]) == ("owner/both", "no")
    Path("systems.yaml").write_text(text.replace("commercial_use: 'no'", "commercial_use: maybe"))
    with pytest.raises(UserError, match="commercial_use must be one of yes, no, unknown"):
        registry.load(Path("systems.yaml"))
