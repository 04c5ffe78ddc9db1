"""Specifications of flow tables: presets, files, what contradicts itself."""

import pytest

from core.errors import UserError
from domains.security.presets import PRESETS, find_specification
from domains.security.specification import FlowSpecification


@pytest.mark.parametrize(
    ("name", "numeric", "categorical"),
    [
        ("nsl_kdd", 34, 7),
        ("unsw_nb15", 37, 5),
        ("cse_cic_ids2018", 64, 14),
        ("cic_ids2017", 64, 13),
        ("netflow_v2", 28, 9),
    ],
)
def test_presets_have_the_fields_of_their_sets(name, numeric, categorical):
    preset = find_specification(name)
    assert (len(preset.numeric), len(preset.categorical)) == (numeric, categorical)
    assert FlowSpecification.from_json(preset.to_json(), name) == preset


def test_classes_of_nsl_kdd_hold_every_attack_once():
    assert {name: len(own) for name, own in PRESETS["nsl_kdd"].classes.items()} == {
        "dos": 10,
        "probe": 6,
        "r2l": 15,
        "u2r": 8,
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("numeric: [a]\nlable: b", "unknown key 'lable' (did you mean 'label'?)"),
        ("numeric: [a, b]\ncategorical: [b]", "two uses for the column 'b'"),
        ("numeric: [a]\nlabel: a", "two uses for the column 'a'"),
        ("label: a", "names no field"),
        ("numeric: a", "numeric: must be a list of names"),
        ("numeric: [a]\nbenign: yes", "benign=True must be one word; quote it"),
        ("numeric: [a]\nsource: a", "source host 'a' is a numeric field too"),
        ("numeric: [a]\nbenign: n\nclasses: {x: [n]}", "puts the label 'n' into two classes"),
        ("- a", "must map keys"),
    ],
)
def test_a_file_that_contradicts_itself_is_told_in_one_line(tmp_path, text, told):
    path = tmp_path / "flows.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        find_specification(str(path))
    assert told in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean 'nsl_kdd'\?"):
        find_specification("nslkdd")


def test_keys_give_columns_another_use():
    base = FlowSpecification(("a", "b"), ("c",), "d", drop=("e",))
    changed = base.changed(categorical=("b",), drop=("c",), numeric=None, label="e", benign="0")
    assert changed == FlowSpecification(("a",), ("b",), "e", "0", drop=("c",))
    assert base.changed(drop=("d",)).label is None
