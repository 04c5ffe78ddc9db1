"""The benchmark NSL-KDD, as it lies on disk."""

import numpy as np
import pytest

from core.errors import UserError
from domains.security.data import FlowData

pytestmark = pytest.mark.data


@pytest.fixture
def made(real_data, monkeypatch):
    monkeypatch.setenv("PLEIAD_DATA", str(real_data))

    def make(**given):
        data = FlowData(**given)
        data.setup()
        return data

    return make


def test_the_published_protocol_has_the_published_sizes(made):
    data = made(train_file="20percent", test="random", faithful=True)
    sizes = FlowData.sizes(data.config)
    assert sizes["numeric"] + sum(sizes["levels"]) == 87
    train, val, test = (data.prepared.rows[n] for n in range(3))
    assert len(test) == len(val) == 1_259
    assert train.min() >= 8
    assert train.max() < 25_192 - 8
    assert not set(train) & set(test) | set(train) & set(val)
    assert data.facts["setting"]["test"] == "random"
    assert any("leaks" in note for note in data.facts["notes"])


def test_the_test_file_holds_attacks_that_training_has_not_seen(made):
    data = made(train_file="20percent")
    flows = data.flows("test")
    assert len(flows.labels) == 22_544
    assert int(flows.labels.sum()) == 12_833
    new = np.isin(flows.attacks, [data.attacks.index(name) for name in data.new_attacks])
    assert (len(data.new_attacks), int(new.sum())) == (18, 3_752)
    batch = data.test_set.__getitems__([0])
    assert (batch.numeric[0] == batch.numeric[0, -1]).all()  # no training flow before the first
    assert "difficulty" not in data.preprocessing.specification.fields


def test_the_four_kinds_of_attacks(made):
    data = made(classes="multi")
    assert data.class_names == ("benign", "dos", "probe", "r2l", "u2r")
    counts = np.bincount(data.flows("test").labels)
    assert counts.tolist() == [9_711, 7_458, 2_421, 2_754, 200]
    assert len(made(test="21", classes="multi").test_set) == 11_850


@pytest.mark.parametrize("given", [{"dataset": "kdd99"}, {"train_file": "half"}, {"test": "22"}])
def test_an_unknown_choice_is_told(made, given):
    with pytest.raises(UserError, match=f"data.{next(iter(given))}="):
        made(**given)
