import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from core.errors import UserError
from core.pretrained import from_pretrained, save_pretrained

DLINEAR = "domains.time_series.networks.dlinear"


@pytest.fixture
def network():
    dlinear = pytest.importorskip(DLINEAR)
    torch.manual_seed(0)
    return dlinear.DLinear(lookback=24, horizon=6, channels=2, kernel=5)


@pytest.fixture
def folder(network, tmp_path) -> Path:
    save_pretrained(network, tmp_path / "model")
    return tmp_path / "model"


def rehash(folder: Path, name: str) -> None:
    from core.openers import file_digest

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name] = file_digest(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_round_trip(network, folder):
    past = torch.randn(3, 24, 2)
    again = from_pretrained(folder)
    assert not again.network.training
    assert torch.equal(again.network(past), network(past))
    assert from_pretrained(folder.parent).config == again.config  # a run folder works too


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_changed_file_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: changed or damaged"):
        from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "manifest.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        from_pretrained(folder)


@pytest.mark.parametrize(
    "path", ["os.system", "subprocess.Popen", "torch.hub.load", "core", 3, None]
)
def test_foreign_classes_are_not_imported(folder, path):
    config = json.loads((folder / "config.json").read_text())
    config["network"]["class_path"] = path
    (folder / "config.json").write_text(json.dumps(config))
    rehash(folder, "config.json")
    with pytest.raises(UserError, match="is not a class of the suite"):
        from_pretrained(folder)


def test_imported_names_of_our_modules_are_no_way_out(folder):
    config = json.loads((folder / "config.json").read_text())
    config["network"]["class_path"] = "core.pretrained.importlib"
    (folder / "config.json").write_text(json.dumps(config))
    rehash(folder, "config.json")
    with pytest.raises(UserError, match="not a class defined there"):
        from_pretrained(folder)


@pytest.mark.parametrize("fault", ["nan", "shape", "missing", "extra", "text"])
def test_weights_that_do_not_fit(network, folder, fault):
    state = dict(network.state_dict())
    name = next(iter(state))
    if fault == "nan":
        state[name] = state[name] * float("nan")
    elif fault == "shape":
        state[name] = torch.zeros(2, 2)
    elif fault == "missing":
        del state[name]
    elif fault == "extra":
        state["../../x"] = torch.zeros(1)
    save_file(state, folder / "model.safetensors")
    if fault == "text":
        (folder / "model.safetensors").write_text("hello")
    rehash(folder, "model.safetensors")
    with pytest.raises(UserError, match=r"not finite|does not fit DLinear|not a readable"):
        from_pretrained(folder)


@pytest.mark.parametrize("name", ["../secret", "inner/../../secret", "/secret"])
def test_a_file_outside_the_folder_is_not_read(folder, name):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name] = "0"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="outside the folder"):
        from_pretrained(folder)


def test_weights_that_are_not_finite_are_not_saved(network, tmp_path):
    with torch.no_grad():
        next(network.parameters()).fill_(float("inf"))
    with pytest.raises(UserError, match="not finite"):
        save_pretrained(network, tmp_path)


class Own(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)


def test_own_network_needs_arguments_and_trust(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="keeps no plain attribute 'width'"):
        save_pretrained(Own(3), tmp_path)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width: int):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(width, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import mine

    save_pretrained(mine.Net(4), tmp_path / "model", init_args={"width": 4})
    with pytest.raises(UserError, match="--trust MODULE"):
        from_pretrained(tmp_path / "model")
    assert from_pretrained(tmp_path / "model", trust=["mine"]).network.layer.in_features == 4
    sys.modules.pop("mine")
