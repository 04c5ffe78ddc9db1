"""Scaling and coding: the published formulas, what the default does otherwise, what is saved."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from domains.security.preprocessing import (
    LEVELS,
    FlowPreprocessing,
    host_keys,
    level,
    levels_of,
    numbers,
)
from domains.security.raw_flows import fit, read_raw
from domains.security.specification import FlowSpecification

FIELDS = FlowSpecification(("size",), ("port",), "label", source="src", destination="dst")


def table(sizes, ports=None):
    ports = ["80"] * len(sizes) if ports is None else ports
    return pa.table(
        {
            "size": pa.array(sizes, pa.float64()),
            "port": pa.array(ports, pa.string()).dictionary_encode(),
        }
    )


def fitted(tmp_path, sizes, ports=None, train=None, faithful=False):
    ports = ["80"] * len(sizes) if ports is None else ports
    lines = [f"{s},{p},n" for s, p in zip(sizes, ports, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["size,port,label", *lines]))
    raw = read_raw([(tmp_path / "a.csv",)], FIELDS, also=("label",), faithful=faithful)
    return fit(raw, np.arange(len(sizes) if train is None else train), faithful=faithful)


@pytest.mark.parametrize("faithful", [True, False])
def test_numbers_are_scaled_by_the_published_formula(tmp_path, faithful):
    scale = fitted(tmp_path, [-2, 3, 14], faithful=faithful)
    found = scale.encode(table([-2.0, 3, 14])).numeric[:, 0]
    assert found == pytest.approx([math.log(v + 3) / math.log(17) for v in (-2, 3, 14)])


def test_what_the_published_mode_does_with_odd_numbers(tmp_path):
    scale = fitted(tmp_path, [2, 10, "inf", "", 2e9], faithful=True)
    assert (scale.low, scale.high) == (0, 10)  # what is odd counts as 0
    found = scale.encode(table([math.inf, -math.inf, None, 2e9, 20, -0.5, -1, -3]))
    assert found.numeric[:4, 0].tolist() == [0, 0, 0, 0]
    assert found.numeric[4, 0] == pytest.approx(math.log(21) / math.log(11))
    assert found.numeric[5, 0] == pytest.approx(math.log(0.5) / math.log(11))
    assert found.numeric[6, 0] == -math.inf
    assert math.isnan(found.numeric[7, 0])
    assert found.outside.tolist() == [4]


def test_the_default_clips_and_counts(tmp_path):
    scale = fitted(tmp_path, [2, 10, "inf", "", 5])
    assert (scale.low, scale.high) == (2, 10)
    found = scale.encode(table([math.inf, -math.inf, None, 2e9, -5, 10]))
    assert found.numeric[:, 0].tolist() == [1, 0, 0, 1, 0, 1]
    assert found.outside.tolist() == [4]  # a missing number is not out of range


def test_a_constant_field_is_zero(tmp_path):
    for faithful in (True, False):
        scale = fitted(tmp_path, [7, 7], faithful=faithful)
        assert scale.encode(table([7.0, 8])).numeric.tolist() == [[0], [0]]


@given(st.lists(st.one_of(st.none(), st.floats()), min_size=1, max_size=20), st.data())
def test_the_default_is_always_within_its_range(values, data):
    low, high = sorted(data.draw(st.tuples(*[st.floats(-(2.0**90), 2.0**90, width=32)] * 2)))
    scale = FlowPreprocessing(
        FIELDS, np.float32([low]), np.float32([high]), (("80",),), np.zeros(1)
    )
    found = scale.encode(table(values)).numeric
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6


def test_levels_are_ranked_by_training_alone(tmp_path):
    ports = ["443"] * 3 + ["80"] * 5 + ["53"] * 50
    for faithful, codes, sizes in ((True, [0, 1, 0, 0], [2]), (False, [1, 2, 0, 0], [3])):
        scale = fitted(tmp_path, range(58), ports, train=8, faithful=faithful)
        assert scale.levels == (("80", "443"),)
        assert scale.high.tolist() == [7]  # rows of the test do not count
        found = scale.encode(table([1.0] * 4, ["80.0", " 443", "53", "x"]))
        assert found.codes[:, 0].tolist() == codes
        assert found.unseen.tolist() == [2]
        assert scale.sizes["levels"] == sizes


def test_only_the_most_frequent_levels_are_kept(tmp_path):
    ports = [str(p) for p in range(40) for _ in range(1 + (p < LEVELS))]
    scale = fitted(tmp_path, range(len(ports)), ports)
    assert sorted(map(int, scale.levels[0])) == list(range(LEVELS))
    assert scale.rare == pytest.approx([8 / 72])
    found = scale.encode(table([0.0] * len(ports), ports))
    assert scale.drift(found.unseen, found.outside, len(ports)) == (0, 0)
    strange = scale.encode(table([-1.0] * 4, ["x"] * 4))
    assert scale.drift(strange.unseen, strange.outside, 4) == pytest.approx((1 - 8 / 72, 1))


def test_what_is_saved_comes_back(tmp_path):
    scale = fitted(tmp_path, [0.1, 1e8 / 3], ["80", "\u00fc"])
    again = FlowPreprocessing.from_json(json.loads(json.dumps(scale.to_json())))
    assert again.to_json() == scale.to_json()
    probe = table([0.3, 12345.678], ["\u00fc", "9"])
    assert np.array_equal(again.encode(probe).numeric, scale.encode(probe).numeric)
    for key, value, told in (
        ("low", [1, 2], "must hold 1, 1, 1 and 1 entries"),
        ("context", "hosts", "data.context=hosts: must be"),
        ("specification", {"x": 1}, "unknown key 'x'"),
    ):
        with pytest.raises(UserError, match=told):
            FlowPreprocessing.from_json({**scale.to_json(), key: value})
    with pytest.raises(UserError, match="must hold specification, low"):
        FlowPreprocessing.from_json({})


@pytest.mark.parametrize(
    ("text", "written"),
    [("6.0", "6"), (" 6.00 ", "6"), ("-1.", "-1"), ("6.5", "6.5"), ("a.0", "a.0"), ("", "")],
)
def test_levels_are_written_in_one_way(text, written):
    assert level(text) == written


def test_hosts_have_one_key_in_every_piece_and_pairs_in_both_directions():
    first = pa.table({"src": ["a", "b", "a"], "dst": ["b", "a", "c"]})
    second = pa.table({"src": ["c", "b"], "dst": ["a", "b"]})
    tables = [
        pa.table({name: t[name].dictionary_encode() for name in ("src", "dst")})
        for t in (first, second)
    ]
    source = [host_keys(t, ("src",)) for t in tables]
    assert source[0][0] == source[0][2] != source[0][1] == source[1][1]
    pair = [host_keys(t, ("src", "dst")) for t in tables]
    assert pair[0][0] == pair[0][1]
    assert pair[0][2] == pair[1][0]
    assert len({*pair[0].tolist(), *pair[1].tolist()}) == 3
    assert host_keys(tables[0], ()) is None


def test_texts_of_an_empty_piece():
    empty = table([]).slice(0, 0)
    assert levels_of(empty["port"])[0].shape == (0,)
    assert numbers(empty, ("size",), False).shape == (0, 1)
