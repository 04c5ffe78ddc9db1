import json

import pytest
import torch
from safetensors.torch import save_file

from core.early_exit.derived import Derived
from core.errors import UserError


def derived(count=400, exits=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    quality = torch.rand(count, exits, generator=generator, dtype=torch.float64) * 0.1 + 0.7
    features = torch.randn(count, 6, generator=generator)
    ids = tuple(f"photo {number}" for number in range(count))
    return Derived(ids, tuple(range(2, exits + 2)), quality, features, "parent a")


def test_targets_are_quality_less_cost():
    quality = torch.tensor([[0.5, 0.6, 0.9], [0.7, 0.7, 0.7], [0.4, 0.5, 0.6]])
    made = Derived(("a", "b", "c"), (2, 3, 6), quality, torch.zeros(3, 1))
    assert made.targets(0.0).tolist() == [2, 0, 2]
    assert made.utility(0.1)[0].tolist() == pytest.approx([0.4, 0.4, 0.4])  # layers 1, 2, 5
    assert made.targets(0.1).tolist() == [0, 0, 0]  # equal ones: the fewest layers
    assert made.targets(0.099).tolist() == [2, 0, 1]
    assert made.histogram(0.099).tolist() == [1, 1, 1]


def test_a_tie_within_single_precision_goes_to_fewer_layers():
    near = torch.tensor([[0.8, 0.8 + 3e-8, 0.8 + 6e-8]], dtype=torch.float64)
    assert Derived(("a",), (1, 2, 3), near, torch.zeros(1, 1)).targets(0).tolist() == [0]


def test_targets_move_to_fewer_layers_as_these_get_dearer():
    made = derived()
    betas = [0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.2]
    targets = torch.stack([made.targets(beta) for beta in betas])
    assert (targets.diff(dim=0) <= 0).all()  # of every example
    counts = torch.stack([made.histogram(beta) for beta in betas])
    assert (counts.sum(1) == len(made.ids)).all()
    assert (counts.cumsum(1).diff(dim=0) >= 0).all()
    assert counts[-1].tolist() == [400, 0, 0, 0, 0]
    mean = made.quality.gather(1, made.targets(0)[:, None]).mean()
    assert mean >= made.quality.mean(0).max()


def test_soft_targets_are_shares_of_the_exits_of_each_example():
    """Over examples, as the released code has it, the price would cancel."""
    made = derived()
    free, dear = made.soft_targets(0.0), made.soft_targets(0.02)
    assert free.shape == (400, 5)
    torch.testing.assert_close(free.sum(1), torch.ones(400, dtype=torch.float64))
    assert torch.equal(free.argmax(1), made.targets(0.0))
    exits = torch.arange(5.0, dtype=torch.float64)
    assert (dear @ exits).mean() < (free @ exits).mean() - 0.5
    assert made.soft_targets(0.0, tau=1.0).std(1).max() < 0.02  # nearly equal
    one = Derived(made.ids[:1], made.depths, made.quality[:1], made.features[:1])
    assert torch.equal(one.soft_targets(0.02), dear[:1])


def test_a_file_gives_the_same_set_again(tmp_path):
    made = derived()
    path = tmp_path / "deeper" / "exits.safetensors"
    made.save(path)
    read = Derived.load(path, source="parent a")
    assert (read.ids, read.depths, read.source) == (made.ids, made.depths, made.source)
    assert torch.equal(read.quality, made.quality)
    assert torch.equal(read.features, made.features)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(UserError, match="another parent"):
        Derived.load(path, source="parent b")


def test_a_damaged_file_is_told_wherever_it_is_damaged(tmp_path):
    path = tmp_path / "exits.safetensors"
    derived(20).save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(UserError, match=str(path)):
            Derived.load(path)
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            Derived.load(path)


def test_a_foreign_file_is_told(tmp_path):
    with pytest.raises(UserError, match="no such derived set"):
        Derived.load(tmp_path / "none.safetensors")
    path = tmp_path / "exits.safetensors"
    path.write_text(json.dumps({"quality": [1]}))
    with pytest.raises(UserError, match="no derived set"):
        Derived.load(path)
    save_file({"quality": torch.ones(2, 2), "features": torch.ones(2, 2)}, path)
    with pytest.raises(UserError, match="another safetensors file"):
        Derived.load(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "exits.safetensors"
    derived(20).save(path)
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.openers.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        derived(30).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_batches_are_gathered_and_what_says_nothing_is_left_out():
    made = derived(10)
    quality = made.quality.clone()
    quality[3, 1] = float("nan")
    parts = [(made.ids[at : at + 4], quality[at : at + 4], made.features[at : at + 4]) for at in
             (0, 4, 8)]  # fmt: skip
    found = Derived.gather(parts, made.depths, "parent a")
    kept = [0, 1, 2, *range(4, 10)]
    assert found.ids == tuple(made.ids[n] for n in kept)
    assert torch.equal(found.quality, made.quality[kept])
    assert torch.equal(found.features, made.features[kept])
    with pytest.raises(ValueError, match="no example"):
        Derived.gather([(["a"], torch.full((1, 2), float("nan")), torch.zeros(1, 1))], (1, 2))


@pytest.mark.parametrize(
    ("ids", "depths", "quality", "features", "message"),
    [
        (("a", "a"), (1, 2), torch.zeros(2, 2), torch.zeros(2, 3), "each once"),
        ((), (1, 2), torch.zeros(0, 2), torch.zeros(0, 3), "0 ids"),
        (("a", "b"), (2, 2), torch.zeros(2, 2), torch.zeros(2, 3), "must rise"),
        (("a", "b"), (0, 2), torch.zeros(2, 2), torch.zeros(2, 3), "must rise"),
        (("a", "b"), (1, 2), torch.zeros(2, 3), torch.zeros(2, 3), "2 examples x 2 exits"),
        (("a", "b"), (1, 2), torch.zeros(2, 2), torch.zeros(3, 3), "must be 2 rows"),
        (("a", "b"), (1,), torch.tensor([[0.0], [torch.inf]]), torch.zeros(2, 3), "of 'b' is not"),
    ],
)
def test_what_does_not_fit_together_is_refused(ids, depths, quality, features, message):
    with pytest.raises(ValueError, match=message):
        Derived(ids, depths, quality, features)


def test_a_price_or_a_temperature_that_is_none_is_refused():
    made = derived(3)
    for beta in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="beta="):
            made.targets(beta)
    with pytest.raises(ValueError, match="tau="):
        made.soft_targets(0.0, tau=0.0)
