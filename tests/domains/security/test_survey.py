"""``pleiad show`` of flows: the draft, what is suspicious, and which files are flows."""

import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from domains.security.draft import draft, is_flows, known_set
from domains.security.presets import PRESETS, find_specification
from domains.security.survey import by_itself, show
from pleiad.show import show as show_any


def frame(count=600):
    rng = np.random.default_rng(0)
    attack = rng.random(count) < 0.2
    return pd.DataFrame(
        {
            "Flow ID": [f"f{n}" for n in range(count)],
            "ts": np.arange(count),
            "Src IP": [f"10.0.0.{n}" for n in rng.integers(0, 9, count)],
            "Dst IP": [f"10.0.1.{n}" for n in rng.integers(0, 9, count)],
            "next hop": [f"10.0.2.{n}" for n in rng.integers(0, 9, count)],
            "Dst Port": rng.integers(0, 4, count),
            "Proto": rng.choice(["tcp", "udp"], count),
            "Flag Count": rng.integers(0, 9, count),
            "bytes": rng.integers(0, 999, count),
            "rate": np.where(np.arange(count) == 3, np.inf, rng.normal(size=count)),
            "ttl": np.where(attack, 62, 254),
            "empty": 0,
            "Label": np.where(attack, 1, 0),
            "Attack": np.where(attack, "dos", "none"),
        }
    )


def test_a_draft_knows_columns_by_name_and_value(tmp_path):
    path = tmp_path / "flows.csv"
    frame().to_csv(path, index=False)
    found, _ = draft(path)
    assert found.numeric == ("Flag Count", "bytes", "rate", "ttl", "empty")
    assert found.categorical == ("Dst Port", "Proto")
    assert found.label == "Attack"
    assert set(found.drop) == {"Flow ID", "ts", "Src IP", "Dst IP", "next hop", "Label"}
    assert (found.source, found.destination, found.time) == ("Src IP", "Dst IP", "ts")
    frame().to_parquet(tmp_path / "flows.parquet")
    assert draft(tmp_path / "flows.parquet")[0] == found


def test_a_label_of_another_name_is_known_by_its_benign_value(tmp_path):
    path = tmp_path / "flows.csv"
    path.write_text(
        "src_ip,dst_ip,bytes,verdict\n1.1.1.1,2.2.2.2,5,Normal\n1.1.1.1,3.3.3.3,7,scan\n"
    )
    assert is_flows(path)
    found, _ = draft(path)
    assert (found.label, found.numeric, found.categorical) == ("verdict", ("bytes",), ())


@pytest.mark.parametrize("name", [name for name, own in PRESETS.items() if not own.header])
def test_public_sets_are_known_by_their_columns(tmp_path, name):
    preset = PRESETS[name]
    path = tmp_path / "flows.csv"
    columns = [*preset.fields, "Timestamp", preset.label]
    path.write_text(", ".join(columns) + "\n" + ",".join("1" for _ in columns) + "\n")
    assert known_set(path) == name
    assert draft(path)[0] == preset
    assert is_flows(path)


def test_show_tells_what_is_suspicious_and_writes_the_draft(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame().to_csv("flows.csv", index=False)
    assert is_flows(tmp_path / "flows.csv")
    shown = show_any("flows.csv")
    facts = dict(zip(*(list(column.cells) for column in shown.columns), strict=True))
    facts = {key: str(value) for key, value in facts.items()}
    assert facts["flows"] == "600"
    assert facts["gives the label away"].startswith("ttl (1.000)")
    assert facts["constant"] == "empty"
    assert facts["infinite"] == "rate 0.17%"
    assert "'none' 80.83%" in facts["label"]
    assert facts["benign"].startswith("'none', ")
    assert "[Dst Port, Proto]" in facts["draft"]
    assert (tmp_path / "flows.png").stat().st_size > 10_000
    written = find_specification(str(tmp_path / "flows.yaml"))
    assert written.benign == "none"
    (tmp_path / "flows.yaml").write_text("mine")
    again = show(tmp_path / "flows.csv", tmp_path / "flows.png")
    assert "is there already" in again["written"]
    assert (tmp_path / "flows.yaml").read_text() == "mine"


def test_a_field_alone_is_judged_by_both_classes():
    from domains.security.raw_flows import RawFlows
    from domains.security.specification import FlowSpecification

    attack = np.arange(100) >= 80
    numeric = np.stack([attack * 5.0, np.full(100, 1.0)], 1).astype(np.float32)
    codes = np.where(attack, np.arange(100) % 2, 0).astype(np.int32)
    fields = FlowSpecification(("a", "b"), ("c",))
    raw = RawFlows(fields, numeric, {"c": codes}, {"c": ["x", "y"]}, None, (0, 100), {})
    assert by_itself(raw, attack) == {"a": 1.0, "c": 0.75, "b": 0.5}


def test_a_file_without_a_header_or_flows_is_refused(tmp_path):
    path = tmp_path / "flows.csv"
    path.write_text("1,2,3\n4,5,6\n")
    with pytest.raises(UserError, match="has no header; name its columns as `header:"):
        draft(path)
    path.write_text("a,b\n")
    with pytest.raises(UserError, match="holds no flows"):
        draft(path)


def test_a_series_stays_a_series_unless_a_domain_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    times = pd.date_range("2024-01-01", periods=50, freq="h")
    pd.DataFrame({"date": times, "load": np.arange(50.0)}).to_csv("load.csv", index=False)
    assert not is_flows(tmp_path / "load.csv")
    assert "frequency" in list(show_any("load.csv").columns[0].cells)
    assert "categorical" in list(show_any("load.csv", domain="security").columns[0].cells)
    assert "categorical" in list(show_any(str(tmp_path), domain="security").columns[0].cells)
    with pytest.raises(UserError, match="--domain sec: must be security"):
        show_any("load.csv", domain="sec")
