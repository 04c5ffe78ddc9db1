import json

import pytest
import torch
from safetensors.torch import save_file

from core.errors import UserError
from core.tensor_files import read_tensors

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def same(found):
    assert set(found) == set(STATE)
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def sharded(folder, suffix=".safetensors", stem="model"):
    places = {}
    for number, (name, tensor) in enumerate(STATE.items(), 1):
        file = f"{stem}-0000{number}-of-00002{suffix}"
        places[name] = file
        if suffix == ".safetensors":
            save_file({name: tensor}, folder / file)
        else:
            torch.save({name: tensor}, folder / file)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_a_file_or_a_folder_of_safetensors(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        state, whole = read_tensors(path)
        same(state)
        assert whole is None


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "weights.pth"])
def test_a_torch_file(tmp_path, name):
    torch.save(STATE, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        same(read_tensors(path)[0])


def test_safetensors_go_before_the_same_weights_as_bin(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    torch.save({"other": torch.ones(1)}, tmp_path / "optimizer.pt")
    same(read_tensors(tmp_path)[0])


def test_a_lightning_checkpoint(tmp_path):
    path = tmp_path / "epoch.ckpt"
    torch.save({"state_dict": STATE, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, path)
    state, whole = read_tensors(path)
    same(state)
    assert whole["epoch"] == 3


def test_weights_of_several_gpus_lose_their_prefix(tmp_path):
    torch.save({f"module.{name}": t for name, t in STATE.items()}, tmp_path / "w.pt")
    same(read_tensors(tmp_path / "w.pt")[0])
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(mixed, tmp_path / "w.pt")
    assert set(read_tensors(tmp_path / "w.pt")[0]) == set(mixed)


@pytest.mark.parametrize(("suffix", "stem"), [(".safetensors", "model"), (".bin", "pytorch_model")])
def test_weights_in_parts(tmp_path, suffix, stem):
    sharded(tmp_path, suffix, stem)
    same(read_tensors(tmp_path)[0])


def test_the_index_of_another_library_is_passed_over(tmp_path):
    sharded(tmp_path)
    for name in ("flax_model.msgpack.index.json", "a.index.json"):
        (tmp_path / name).write_text(json.dumps({"weight_map": {"a": "missing"}}))
    same(read_tensors(tmp_path)[0])


def test_one_part_is_no_longer_than_the_whole(tmp_path):
    sharded(tmp_path)
    save_file({"whole": torch.ones(1)}, tmp_path / "model.safetensors")
    assert set(read_tensors(tmp_path)[0]) == {"whole"}


def test_a_part_is_missing_or_lacks_a_tensor(tmp_path):
    index = sharded(tmp_path)
    described = json.loads(index.read_text())
    described["weight_map"]["c"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"c is not in model-00001-of-00002.safetensors"):
        read_tensors(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors: no such file"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "sub/file.bin"])
def test_an_index_names_no_file_outside(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="is outside the folder"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("content", [[], {"weight_map": []}, {"weight_map": {"a": 3}}])
def test_an_index_without_files(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"names no files \(weight_map\)"):
        read_tensors(tmp_path)


def test_what_is_no_file_of_weights(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_tensors(tmp_path / "none.bin")
    with pytest.raises(UserError, match=r"no file that ends in .safetensors"):
        read_tensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_tensors(tmp_path)
    torch.save({"a": torch.ones(1), "step": 3}, tmp_path / "mixed.pt")
    with pytest.raises(UserError, match="neither `state_dict` nor tensors"):
        read_tensors(tmp_path / "mixed.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    with pytest.raises(UserError, match="could run code"):
        read_tensors(tmp_path / "module.pt")


def test_several_files_are_listed(tmp_path):
    for name in ("a.pt", "b.pt"):
        torch.save(STATE, tmp_path / name)
    with pytest.raises(UserError, match=r"there is a.pt, b.pt; name the file of the weights"):
        read_tensors(tmp_path)
