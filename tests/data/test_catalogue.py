"""The reader is strict, and the real catalogue is right, file by file."""

import re
import zipfile
from pathlib import Path, PurePosixPath

import pandas as pd
import pytest

import data
from data import catalogue

NAMES = list(data.entries())
FILE = {"bytes": 1, "sha256": "0" * 64, "url": "https://example.org/x"}
GROUP = {"glob": ["*.x"], "count": 1, "bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"licens": "x"}, "unknown key 'licens'; the keys are title, domain"),
        ({"title": 3}, "title must be str, not 3"),
        ({"files": {"x": FILE}, "group": GROUP}, "either files or group"),
        ({}, "either files or group"),
        ({"group": GROUP}, "the source of a group must be manual"),
        ({"files": {"x": FILE | {"size": 1}}}, "tiny: x: unknown key 'size'"),
        ({"files": {"x": {"bytes": 1}}}, "tiny: x: the key 'sha256' is missing"),
        ({"files": {"x": None}}, "tiny: x: expected the keys bytes, sha256, url, not None"),
        ({"files": {"x": FILE | {"bytes": True}}}, "bytes must be int | None, not True"),
        ({"files": {"x": FILE | {"sha256": "0" * 63}}}, "sha256 must be 64 hex digits"),
        ({"files": {"x": FILE | {"sha256": None}}}, "url must be http(s) and come with a sha256"),
        ({"files": {"x": FILE | {"url": "file:///x"}}}, "url must be http(s)"),
        ({"files": {"x": {"bytes": 1, "sha256": None}}}, "if and only if the source is url"),
        ({"files": {"x": FILE}, "source": "manual: y"}, "if and only if the source is url"),
        ({"files": {"x": FILE}, "source": "ftp:y"}, "source must be url, package:NAME or manual"),
        ({"files": {"x": FILE}, "source": "manual:"}, "source must be url, package:NAME or manual"),
        ({"files": {}, "source": "package:a.b"}, "must be a top-level package, not 'a.b'"),
        ({"files": {"../x": FILE}}, "'../x' must be a relative path"),
        ({"files": {"/x": FILE}}, "'/x' must be a relative path"),
        ({"files": {"x": FILE}, "folder": "a/../.."}, "'a/../..' must be a relative path"),
        ({"group": GROUP | {"glob": ["../*"]}, "source": "manual: y"}, "'../*' must be a relative"),
        (
            {"files": {"x": FILE}, "splits": {"train": 1}},
            "splits: unknown key 'train'; the keys are",
        ),
        ({"files": {"x": FILE}, "splits": {"rows": 1}}, "splits: rows must be dict, not 1"),
        ({"files": {"x": FILE}, "splits": {"rows": {"train": 0.5}}}, "rows: train must be int"),
        ({"files": {"x": FILE}, "splits": {"rows": {}, "files": {}}}, "splits: give one of rows"),
    ],
)
def test_wrong_entry_is_named(declare, keys, message):
    declare(**keys)
    with pytest.raises(data.DataError, match=re.escape(message)) as caught:
        data.entries()
    assert str(caught.value).startswith("catalogue.yaml: tiny: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "a: [", "A: {}", "1: {}", ""])
def test_wrong_file_is_refused(tmp_path, text):
    path = tmp_path / "other.yaml"
    path.write_text(text)
    with pytest.raises(data.DataError, match=r"^other\.yaml: [^\n]*$"):
        catalogue.load(path)


def test_entries_cannot_be_changed():
    with pytest.raises(TypeError):
        data.entries()["x"] = data.entry("etth1")
    with pytest.raises(TypeError):
        data.entry("etth1").facts["rows"] = 1
    with pytest.raises(AttributeError):
        data.entry("etth1").title = "x"


def test_no_name_is_given_twice():
    assert re.findall("^([a-z]\\w*):$", catalogue.PATH.read_text(), re.MULTILINE) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_whole(name):
    entry = data.entry(name)
    assert all([entry.title, entry.licence, entry.citation, entry.files or entry.group])
    for file in entry.files:
        if file.url:
            assert re.match(r"https://raw\.githubusercontent\.com/\S+/[0-9a-f]{40}/\S+$", file.url)
    if rows := entry.splits.get("rows"):
        assert sum(rows.values()) <= entry.facts["rows"]
    if fractions := entry.splits.get("fractions"):
        assert sum(fractions.values()) == pytest.approx(1)
    for pattern in patterns(entry) if entry.files else []:
        archive = pattern.partition("!")[0]
        assert any(PurePosixPath(file.path).match(archive) for file in entry.files), pattern


def patterns(entry) -> list[str]:
    return [
        pattern
        for part in entry.splits.get("files", {}).values()
        for pattern in (part if isinstance(part, list) else [part])
    ]


def test_benchmark_borders():
    """Rows of training, validation and test, of which every published table depends."""
    for name, unit in (("etth1", 1), ("etth2", 1), ("ettm1", 4), ("ettm2", 4)):
        borders = {"train": 8640 * unit, "val": 2880 * unit, "test": 2880 * unit}
        assert data.entry(name).splits["rows"] == borders
        assert data.entry(name).facts["season_length"] == 24 * unit


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_real_files_have_their_checksums(name, real_data):
    if not data.where(name).exists():
        pytest.skip(f"{name} is not below PLEIAD_DATA")
    data.verify(name)


def located(name: str) -> Path:
    try:
        return data.locate(name, download=False)
    except data.DataError as error:
        pytest.skip(str(error))


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name in NAMES if "date" in data.entry(name).facts])
def test_real_series_have_their_facts(name, real_data):
    facts = data.entry(name).facts
    frame = pd.read_csv(located(name))
    assert frame.columns[0] == facts["date"]
    assert facts["target"] == frame.columns[-1]
    assert frame.shape == (facts["rows"], facts["channels"] + 1)
    assert int(frame.isna().sum().sum()) == facts.get("missing", 0)
    dates = pd.to_datetime(frame["date"].astype(str), format="mixed")
    regular = pd.date_range(dates.iloc[0], periods=len(dates), freq=facts["freq"])
    assert (dates == regular).all()


@pytest.mark.data
def test_real_splits_of_files_are_whole(real_data):
    """Each pattern of a group finds the declared number of files, and no file is in two splits."""
    checked = 0
    for name in NAMES:
        entry = data.entry(name)
        if not entry.group or not entry.splits:
            continue
        folder = located(name)
        seen = set()
        for split, part in entry.splits["files"].items():
            globs = part if isinstance(part, list) else [part]
            found = {path for glob in globs for path in folder.glob(glob)}
            assert len(found) == entry.facts["files"][split]
            assert not found & seen
            seen |= found
        checked += 1
    assert checked == 3


@pytest.mark.data
def test_real_archives_have_their_members(real_data):
    for name in ("cola", "ficle"):
        with zipfile.ZipFile(located(name)) as archive:
            for pattern in patterns(data.entry(name)):
                assert pattern.partition("!")[2] in archive.namelist()


@pytest.mark.data
def test_real_nsl_kdd_has_its_facts(real_data):
    folder, entry = located("nsl_kdd"), data.entry("nsl_kdd")
    kinds = {"normal": "normal"}
    for line in (folder / "Attack Types.csv").read_text().split():
        attack, _, kind = line.partition(",")
        kinds.setdefault(attack, kind)
    for kind, attacks in entry.facts["test_only_attacks"].items():
        assert not kinds.keys() & set(attacks)
        kinds |= dict.fromkeys(attacks, kind)
    for split, part in entry.splits["files"].items():
        frame = pd.read_csv(folder / part, header=None)
        assert frame.shape == (entry.facts["rows"][split], entry.facts["features"] + 2)
        if counts := entry.facts["class_counts"].get(split):
            assert frame[41].map(kinds).value_counts().to_dict() == counts
