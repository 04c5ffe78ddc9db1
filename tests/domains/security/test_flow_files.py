"""Reading tables of flows: one content in every format, every fault with its line."""

import gzip
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from domains.security import flow_files
from domains.security.flow_files import REPEATED, find_flow_files, read_flows
from domains.security.preprocessing import levels_of
from domains.security.specification import FlowSpecification

FIELDS = FlowSpecification(("size", "rate"), ("proto",), "label")
HEADLESS = FlowSpecification(
    ("size", "rate"), ("proto",), "label", header=("size", "rate", "proto", "label")
)


def read(path, specification=FIELDS, **given):
    """Give the flows of a file as lists."""
    found = {name: [] for name in ("size", "rate", "proto", "label")}
    for table in read_flows(path, specification, also=("label",), **given):
        for name, own in found.items():
            if name in specification.numeric:
                own += table[name].to_pylist()
            else:
                indices, texts = levels_of(table[name])
                own += [texts[n] for n in indices]
    return found


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


PLAIN = "size,rate,proto,label\n1,0.5,tcp,n\n2,Infinity,udp,y\n,-1e3,6.0,n\n"
WANTED = {
    "size": [1, 2, None],
    "rate": [0.5, float("inf"), -1000],
    "proto": ["tcp", "udp", "6"],
    "label": ["n", "y", "n"],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", PLAIN),
        ("a.csv.gz", PLAIN),
        ("a.csv", "\ufeff" + PLAIN),
        ("a.csv", PLAIN.replace("\n", "\r\n")),
        ("a.csv", PLAIN.replace(",", ";")),
        ("a.csv", PLAIN.rstrip("\n")),
        ("a.csv", PLAIN.replace("size,rate", " size , rate")),
        ("a.csv", "label,x,proto,rate,size\nn,?,tcp,0.5,1\ny,,udp,inf,2\nn,z, 6 ,-1000,-\n"),
        ("a.csv", PLAIN.replace("2,Inf", "size,rate,proto,label\n2,Inf")),
    ],
)
def test_one_content_however_it_is_written(tmp_path, name, text):
    assert read(write(tmp_path / name, text)) == WANTED


def test_parquet_holds_the_same(tmp_path):
    frame = pd.DataFrame(
        {
            "label": pd.Categorical(["n", "y", "n"]),
            "x": [1, 2, 3],
            "rate": ["0.5", "inf", " -1000"],
            "proto": ["tcp", "udp", "6.0"],
            " size": [1, 2, None],
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == WANTED
    pq.write_table(
        pa.table({"size": ["1", "zwei"], "rate": [1, 2], "proto": [6, 7], "label": [0, 1]}),
        tmp_path / "b.parquet",
    )
    with pytest.raises(UserError, match=r"b.parquet: row 2: column 'size' holds 'zwei'"):
        read(tmp_path / "b.parquet")


def test_without_a_header_and_with_one_that_was_added(tmp_path):
    bare = write(tmp_path / "a.txt", PLAIN.partition("\n")[2])
    assert read(bare, HEADLESS) == WANTED
    assert read(write(tmp_path / "b.txt", PLAIN), HEADLESS) == WANTED
    with pytest.raises(UserError, match=r"has 5 columns and no header, and .* names 4"):
        read(write(tmp_path / "c.txt", "1,2,tcp,n,7\n"), HEADLESS)
    with pytest.raises(UserError, match="has no column 'rate'"):
        read(write(tmp_path / "d.txt", "size,proto,label\n1,tcp,n\n"), HEADLESS)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", ": is empty"),
        (b"\n1,2", ": is empty, or its first line is"),
        (b"size,rate,proto,label\n", ": holds no flows"),
        (b"size,rates,proto,label\n1,2,t,n\n", ": has no column 'rate' (did you mean 'rates'?)"),
        (PLAIN.encode() + b"x,1,tcp,n\n", ":5: column 'size' holds 'x', which is no number"),
        (PLAIN.encode() + b"\n1,tcp,n\n", ":6: has 3 columns, not 4"),
        (PLAIN.encode() + b"1,2,t\xff,n\n", ":5: byte 0xff at place 6 of the line is not utf-8"),
    ],
)
@pytest.mark.parametrize("block", [8, 2**20])
def test_what_cannot_be_read_is_told_with_its_line(tmp_path, monkeypatch, data, told, block):
    if b"\n" in data[1:]:
        monkeypatch.setattr(flow_files, "_BLOCK", max(block, data.index(b"\n", 1) + 1))
    path = write(tmp_path / "flows.csv", data)
    with pytest.raises(UserError) as error:
        read(path)
    assert f"{path}{told}" in str(error.value)
    assert "\n" not in str(error.value)


def test_other_encodings_are_named_by_the_specification(tmp_path):
    path = write(tmp_path / "a.csv", PLAIN.replace(",y", ",Web \u2013 XSS").encode("cp1252"))
    with pytest.raises(UserError, match="encoding: cp1252"):
        read(path)
    windows = FlowSpecification(("size", "rate"), ("proto",), "label", encoding="cp1252")
    assert read(path, windows)["label"] == ["n", "Web \u2013 XSS", "n"]


def test_a_repeated_header_is_left_out_and_counted(tmp_path):
    repairs = Counter()
    read(write(tmp_path / "a.csv", PLAIN + PLAIN), repairs=repairs)
    assert repairs == {REPEATED: 1}


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(width=32)),
            st.sampled_from(["tcp", "udp", "ü", "a b"]),
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(30, 200),
    st.integers(1, 9),
)
@settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_blocks_and_pieces_change_nothing(tmp_path, monkeypatch, flows, block, rows):
    monkeypatch.setattr(flow_files, "_BLOCK", block)
    frame = pd.DataFrame(flows, columns=["size", "proto"])
    frame = frame.assign(rate=np.arange(len(flows)), label="n")
    frame.to_csv(tmp_path / "a.csv", index=False)
    sizes = [t.num_rows for t in read_flows(tmp_path / "a.csv", FIELDS, rows=rows)]
    assert sum(sizes) == len(flows)
    assert max(sizes) <= rows
    found = read(tmp_path / "a.csv", rows=rows)
    assert found["rate"] == list(range(len(flows)))
    assert found["proto"] == [proto for _, proto in flows]
    sizes = np.array([np.nan if size is None else size for size in found["size"]])
    assert np.array_equal(sizes, frame["size"].to_numpy(float), equal_nan=True)


def test_memory_does_not_grow_with_the_file(tmp_path):
    lines = b"".join(b"%d,%d.5,tcp,n\n" % (n, n % 97) for n in range(100_000))
    peaks = []
    for times in (12, 60):
        path = tmp_path / f"{times}.csv"
        with path.open("wb") as file:
            file.write(b"size,rate,proto,label\n")
            for _ in range(times):
                file.write(lines)
        before, peak, flows = pa.total_allocated_bytes(), 0, 0
        for table in read_flows(path, FIELDS, also=("label",)):
            peak = max(peak, pa.total_allocated_bytes() - before)
            flows += table.num_rows
        assert flows == times * 100_000
        peaks.append(peak)
        path.unlink()
    assert peaks[1] < 1.2 * peaks[0] < 80 * 2**20


def test_files_folders_and_patterns(tmp_path):
    for name in ("b.csv", "a.csv.gz", "c.parquet", "readme.md"):
        (tmp_path / name).touch()
    names = [path.name for path in find_flow_files(str(tmp_path), "train")]
    assert names == ["a.csv.gz", "b.csv", "c.parquet"]
    assert len(find_flow_files(str(tmp_path / "*.csv"), "train")) == 1
    with pytest.raises(UserError, match=r"--data.test=.*no such file of flows"):
        find_flow_files(str(tmp_path / "d.csv"), "test")
