"""A user's own flows: divisions that do not leak, and what is wrong told before training."""

import numpy as np
import pandas as pd
import pytest
import torch

from core.errors import UserError
from domains.security.own_data import OwnFlowData

WINDOW = 4


def flows(count=400, seed=0):
    rng = np.random.default_rng(seed)
    kinds = rng.choice(["benign", "dos", "scan"], count, p=[0.7, 0.2, 0.1])
    return pd.DataFrame(
        {
            "Timestamp": pd.date_range("2024-01-01", periods=count, freq="s").astype(str),
            "src_ip": [f"10.0.0.{n}" for n in rng.integers(0, 12, count)],
            "dst_ip": [f"10.0.1.{n}" for n in rng.integers(0, 4, count)],
            "dst_port": rng.choice([22, 80, 443], count),
            "bytes": np.arange(count),
            "rate": rng.normal(size=count).round(4),
            "label": kinds,
        }
    )


@pytest.fixture
def table(tmp_path):
    flows().to_csv(tmp_path / "flows.csv", index=False)
    return str(tmp_path / "flows.csv")


def made(train, **given):
    data = OwnFlowData(train, **{"window": WINDOW, "batch_size": 16, "steps_per_epoch": 3, **given})
    data.setup()
    return data


def windows_of(data, part):
    """Give the rows (B, W) of the windows of a part, by the number of bytes, which is the row."""
    found = data.prepared
    scale, spread = found.preprocessing.low[0], found.preprocessing.high[0]
    batch = getattr(data, f"{part}_set").__getitems__(range(len(getattr(data, f"{part}_set"))))
    return batch.rows.numpy(), found.windows.index(batch.rows.numpy()), batch, (scale, spread)


def test_a_batch_holds_the_windows_of_its_flows(table):
    data = made(table, faithful=True)
    rows, index, batch, (low, high) = windows_of(data, "val")
    assert rows.tolist() == list(range(280, 320))
    assert index[:, -1].tolist() == rows.tolist()
    wanted = torch.log1p(torch.from_numpy(index) - low) / np.log1p(high - low)
    assert torch.allclose(batch.numeric[..., 0], wanted.float())
    truth = flows()["label"].to_numpy()[rows]
    assert (batch.labels.numpy() == (truth != "benign")).all()
    assert [data.attacks[n] for n in batch.attacks] == truth.tolist()
    assert batch.codes.dtype == torch.int64


def test_training_batches_are_half_and_half(table):
    data = made(table)
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    assert all(batch.labels.bincount().tolist() == [8, 8] for batch in batches)
    several = made(table, classes="multi")
    assert several.class_names == ("benign", "dos", "scan")
    batch = next(iter(several.train_dataloader()))
    assert sorted(batch.labels.bincount().tolist()) == [5, 5, 6]


def test_the_last_flows_test_and_no_window_looks_ahead(table):
    data = made(table)
    parts = [windows_of(data, part) for part in ("train", "val", "test")]
    assert [len(rows) for rows, *_ in parts] == [280, 40, 80]
    assert parts[0][1].max() < parts[1][0].min()
    for rows, index, *_ in parts:
        assert (index <= rows[:, None]).all()
    assert parts[1][1].min() == 280 - WINDOW + 1  # the past may be context


def test_only_training_flows_are_fitted(table, tmp_path):
    before = made(table).preprocessing.to_json()
    frame = flows()
    frame.loc[280:, "rate"] = 1e6
    frame.loc[280:, "dst_port"] = 9999
    frame.to_csv(tmp_path / "poisoned.csv", index=False)
    assert made(str(tmp_path / "poisoned.csv")).preprocessing.to_json() == before


@pytest.mark.parametrize("context", ["file", "source", "destination", "pair"])
@pytest.mark.parametrize("split", ["last", "group:src_ip", "attack:scan", "time:Timestamp"])
def test_windows_hold_the_flows_of_their_host_and_part(table, split, context):
    data, frame = made(table, split=split, context=context), flows()
    part = data.prepared.division.part
    pairs = [tuple(sorted(pair)) for pair in zip(frame["src_ip"], frame["dst_ip"], strict=True)]
    hosts = {"source": frame["src_ip"].tolist(), "destination": frame["dst_ip"].tolist()}
    hosts |= {"pair": pairs, "file": [""] * len(frame)}
    for name in ("train", "val", "test"):
        rows, index, *_ = windows_of(data, name)
        for row, window in zip(rows, index, strict=True):
            assert {hosts[context][n] for n in window} == {hosts[context][row]}
            if split != "last":
                assert {part[n] for n in window} == {part[row]}
    if split.startswith("group"):
        groups = [set(frame["src_ip"][part == n]) for n in range(3)]
        assert not groups[0] & groups[2] | groups[0] & groups[1] | groups[1] & groups[2]


def test_an_attack_that_is_held_out_only_tests(table):
    data = made(table, split="attack:scan")
    assert data.new_attacks == ("scan",)
    assert "scan" in data.summary()[4]
    counts = flows()["label"].value_counts()
    assert (data.flows("test").attacks == data.attacks.index("scan")).sum() == counts["scan"]
    assert not (data.flows("val").attacks == data.attacks.index("scan")).any()


def test_a_random_split_warns_and_can_be_kept(table, tmp_path):
    data = made(table, split="random")
    assert any("leaks" in line for line in data.summary())
    data.keep(tmp_path)
    again = made(table, split=str(tmp_path / "splits.parquet"))
    for mine, theirs in zip(again.prepared.rows, data.prepared.rows, strict=True):
        assert mine.tolist() == theirs.tolist()


def test_files_of_their_own_for_validation_and_test(table, tmp_path):
    flows(50, 1).to_parquet(tmp_path / "test.parquet")
    flows(30, 2).to_csv(tmp_path / "val.csv.gz", index=False)
    data = made(table, val=str(tmp_path / "val.csv.gz"), test=str(tmp_path / "test.parquet"))
    assert [len(rows) for rows in data.prepared.rows] == [400, 30, 50]
    _, index, *_ = windows_of(data, "test")
    assert index.min() == 430  # its windows begin with its own first flow
    assert index[0].tolist() == [430] * WINDOW


def test_columns_in_another_order_give_the_same_batches(table, tmp_path):
    frame = flows()
    frame[frame.columns[::-1]].rename(columns=" {} ".format).to_csv(
        tmp_path / "other.csv", index=False
    )
    fields = {"numeric": "bytes,rate", "categorical": "dst_port"}
    (tmp_path / "flows.yaml").write_text(
        "numeric: [bytes, rate]\ncategorical: [dst_port]\nlabel: label"
    )
    given = {"specification": str(tmp_path / "flows.yaml"), "seed": 1}
    first = next(iter(made(table, **given, **fields).train_dataloader()))
    second = next(iter(made(str(tmp_path / "other.csv"), **given).train_dataloader()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_sizes_are_those_of_the_batches(table):
    data = made(table, classes="multi")
    sizes = OwnFlowData.sizes(data.config)
    assert sizes == {"numeric": 2, "levels": [4], "window": WINDOW, "classes": 3}
    batch = next(iter(data.train_dataloader()))
    assert batch.numeric.shape == (16, WINDOW, 2)
    assert batch.codes.shape == (16, WINDOW, 1)
    assert batch.codes.max() < 4


def test_odd_numbers_are_mended_and_told(tmp_path):
    frame = flows()
    frame.loc[5, "rate"] = np.inf
    frame.loc[6, "rate"] = np.nan
    frame.loc[7, "rate"] = -50
    frame.to_csv(tmp_path / "flows.csv", index=False)
    data = made(str(tmp_path / "flows.csv"))
    assert np.isfinite(data.flows("train").numeric).all()
    told = data.summary()
    assert "infinite numbers, clipped: 1 in training" in told
    assert "missing numbers, taken as 0: 1 in training" in told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"label": "labl"}, "--data.label=labl: .* has no column 'labl' .did you mean 'label'"),
        ({"drop": "bytes,xs"}, "--data.drop=bytes,xs: .* has no column 'xs'"),
        ({"drop": "label"}, "which column names the attack"),
        ({"benign": "Benign"}, "no flow has the benign value 'Benign' .*did you mean 'benign'"),
        ({"split": "lasst"}, "there is no such rule .did you mean 'last'"),
        ({"split": "attack:scam"}, "no flow has the label 'scam' .did you mean 'scan'"),
        ({"split": "group:src"}, "has no column 'src'"),
        ({"split": "column:bytes"}, "the column 'bytes' is a numeric field"),
        ({"context": "host"}, "data.context=host: must be file, source"),
        ({"context": "source", "specification": "SPEC"}, "add `source: COLUMN`"),
        ({"window": 0}, "data.window=0"),
        ({"val_fraction": 0.9}, "leave flows to train on"),
        ({"specification": "nsl-kdd"}, "did you mean 'nsl_kdd'"),
        ({"split": "attack:scan", "classes": "multi"}, "no flow of class 'scan' is left to train"),
        ({"split": "attack:scan,dos"}, "no flow of class 'attack' is left to train on"),
    ],
)
def test_what_does_not_fit_is_told_before_training(table, tmp_path, given, told):
    if given.get("specification") == "SPEC":
        (tmp_path / "s.yaml").write_text("numeric: [bytes]\nlabel: label")
        given = {**given, "specification": str(tmp_path / "s.yaml")}
    with pytest.raises(UserError, match=told) as error:
        made(table, **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "specification", "told"),
    [
        ({"label": ""}, None, r"flows without a label in column 'label': 1, the first is flow 8"),
        (
            {"label": "doss"},
            "classes: {all: [dos, scan]}",
            r"'doss' \(flows: 1\), which .*no class",
        ),
    ],
)
def test_a_label_that_is_missing_or_unknown(tmp_path, change, specification, told):
    frame = flows()
    for column, value in change.items():
        frame.loc[7, column] = value
    frame.to_csv(tmp_path / "flows.csv", index=False)
    given = {}
    if specification:
        text = f"numeric: [bytes]\nlabel: label\n{specification}"
        (tmp_path / "s.yaml").write_text(text)
        given = {"specification": str(tmp_path / "s.yaml")}
    with pytest.raises(UserError, match=told):
        made(str(tmp_path / "flows.csv"), **given)


def test_a_table_of_one_label(tmp_path):
    flows().assign(label="benign").to_csv(tmp_path / "flows.csv", index=False)
    with pytest.raises(UserError, match="holds 'benign' alone, so there is no attack"):
        made(str(tmp_path / "flows.csv"))


def test_resuming_asks_for_the_same_flows(table, tmp_path):
    data = made(table)
    state = data.state_dict()
    made(table).load_state_dict(state)
    frame = flows()
    frame.loc[0, "label"] = "scan" if frame["label"][0] != "scan" else "dos"
    frame.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(UserError):
        made(str(tmp_path / "other.csv"), benign="benign").load_state_dict(state)
