"""Sets are found, verified once, and every fault is one line that names the fix."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

import data
from data import store


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the files that were read through."""
    seen = []

    def counted(path):
        seen.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(store, "sha256", counted)
    return seen


@pytest.fixture
def group(declare, root):
    """Declare ``tiny`` as a group of three files, and write them; returns their folder."""
    folder = root / "vision" / "tiny-set"
    (folder / "sub").mkdir(parents=True)
    sums = []
    for name in ("a.txt", "sub/b.txt", "sub/c.txt"):
        (folder / name).write_text(name)
        sums.append(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n")
    digest = hashlib.sha256("".join(sums).encode()).hexdigest()
    rule = {"glob": ["*.txt", "sub/*.txt"], "count": 3, "bytes": 23, "sha256": digest}
    declare(group=rule, source="manual: ask the author")
    return folder


def test_locate_downloads_a_small_set(tiny, server):
    assert data.locate("tiny") == tiny
    assert tiny.read_bytes() == server.content


def test_locate_downloads_nothing_unasked(tiny, server, declare, monkeypatch):
    with pytest.raises(data.DataError, match=r"run: pleiad data fetch tiny \(0\.3 MB from http"):
        data.locate("tiny", download=False)
    monkeypatch.setattr(store, "SMALL_BYTES", 300_000)
    with pytest.raises(
        data.DataError, match=r"a file.bin not found in .*tiny-set; run: pleiad data"
    ):
        data.locate("tiny")
    assert server.asked == []
    assert data.fetch("tiny") == tiny


def test_where_checks_nothing(tiny, server):
    assert data.where("tiny") == tiny
    assert not tiny.exists()
    assert server.asked == []


def test_several_files_are_a_folder(declare, root):
    declare(files={name: {"bytes": 1, "sha256": None} for name in "ab"}, source="manual: ask")
    assert data.where("tiny") == root / "vision" / "tiny-set"


def test_default_folder_is_the_users_cache(tiny, monkeypatch):
    monkeypatch.delenv("PLEIAD_DATA")
    assert data.where("tiny").parts[-5:] == ("pleiad", "data", "vision", "tiny-set", "a file.bin")


def test_verified_once(tiny, reads):
    data.fetch("tiny")
    assert reads == [tiny.name]
    for _ in range(3):
        data.locate("tiny")
    assert reads == [tiny.name]
    data.verify("tiny")
    assert reads == [tiny.name] * 2


def test_another_data_folder_is_another_file(tiny, reads, tmp_path, monkeypatch):
    data.fetch("tiny")
    copy = tmp_path / "copy" / "vision" / "tiny-set" / tiny.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(bytes(300_000))
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path / "copy"))
    with pytest.raises(data.DataError, match="not the published file"):
        data.locate("tiny")
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path / "data"))
    data.locate("tiny")
    assert reads == [tiny.name] * 2


def test_changed_file_is_refused_and_kept(tiny, server):
    data.fetch("tiny")
    changed = bytes([server.content[0] ^ 1]) + server.content[1:]
    tiny.write_bytes(changed)
    for call in (data.locate, data.fetch, data.verify):
        with pytest.raises(data.DataError) as caught:
            call("tiny")
        message = str(caught.value)
        for part in (
            str(tiny),
            hashlib.sha256(server.content).hexdigest(),
            hashlib.sha256(changed).hexdigest(),
            "move the file away and run: pleiad data fetch tiny",
        ):
            assert part in message
        assert "\n" not in message
    assert tiny.read_bytes() == changed
    tiny.unlink()
    assert data.fetch("tiny").read_bytes() == server.content


def test_verify_finds_a_change_that_kept_size_and_time(tiny):
    data.fetch("tiny")
    stat = tiny.stat()
    tiny.write_bytes(bytes(stat.st_size))
    os.utime(tiny, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    data.locate("tiny")  # as documented, such a change is not looked for
    with pytest.raises(data.DataError, match="not the published file"):
        data.verify("tiny")
    with pytest.raises(data.DataError, match="not the published file"):
        data.locate("tiny")


@pytest.mark.parametrize(
    "record",
    [
        "",
        "[1]",
        '{"x": 1}',
        "\udcff",
        '{"FOLDER": {"NAME": 1}}',
        '{"FOLDER": {"NAME": [1, 2, 3]}}',
        '{"FOLDER": {"NAME": [SIZE, TIME]}}',
    ],
)
def test_damaged_record_is_ignored(tiny, reads, tmp_path, record):
    data.fetch("tiny")
    path = tmp_path / "cache" / "pleiad" / "verified" / "tiny.json"
    size, time, _ = json.loads(path.read_text())[str(tiny.parent)][tiny.name]
    text = record.replace("FOLDER", str(tiny.parent)).replace("NAME", tiny.name)
    text = text.replace("SIZE", str(size)).replace("TIME", str(time))
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    data.locate("tiny")
    data.locate("tiny")
    assert reads == [tiny.name] * 2


def test_read_only_data_folder(tiny, reads, tmp_path):
    data.fetch("tiny")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("data/**/*")}
    (tmp_path / "cache" / "pleiad" / "verified" / "tiny.json").unlink()
    tiny.parent.chmod(0o555)
    try:
        for _ in range(2):
            assert data.locate("tiny") == tiny
            assert data.fetch("tiny") == tiny
    finally:
        tiny.parent.chmod(0o755)
    assert reads == [tiny.name] * 2
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("data/**/*")}


def test_data_folder_that_cannot_be_written(tiny, root):
    root.write_text("a file where a folder is needed")
    with pytest.raises(OSError, match=r"tiny cannot be stored .*; set PLEIAD_DATA to a folder"):
        data.fetch("tiny")


def test_cache_that_cannot_be_written(tiny, server, reads, tmp_path, monkeypatch):
    (tmp_path / "blocked").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    data.fetch("tiny")
    data.locate("tiny")
    assert reads == [tiny.name] * 2


def test_file_without_a_published_checksum(declare, root):
    declare(files={"x.csv": {"bytes": None, "sha256": None}}, source="manual: get x from its page")
    path = root / "vision" / "tiny-set" / "x.csv"
    for call in (data.locate, data.fetch, data.verify):
        with pytest.raises(data.DataError) as caught:
            call("tiny")
        assert str(caught.value) == (
            f"tiny: x.csv not found in {path.parent}; to put it there: get x from its page; "
            "then check it by: pleiad data fetch tiny"
        )
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(data.DataError, match="is empty"):
        data.locate("tiny")
    path.write_text("a,b\n")
    assert data.verify("tiny") == path


def test_group(group, reads):
    assert data.locate("tiny") == group
    assert data.locate("tiny") == group
    assert len(reads) == 3
    (group / "sub" / "note.md").touch()  # not matched, so not of the set
    assert data.verify("tiny") == group


@pytest.mark.parametrize("fault", ["changed", "missing", "extra", "renamed"])
def test_damaged_group(group, fault):
    data.locate("tiny")
    if fault == "changed":
        (group / "sub" / "b.txt").write_text("sub/B.txt")
    elif fault == "missing":
        (group / "a.txt").unlink()
    elif fault == "extra":
        (group / "d.txt").write_text("d")
    else:
        (group / "a.txt").rename(group / "A.txt")
    with pytest.raises(data.DataError, match=r"expected 3 files of 23 bytes .*ask the author"):
        data.locate("tiny")


def test_missing_group(group):
    for path in group.glob("**/*.txt"):
        path.unlink()
    with pytest.raises(data.DataError, match=r"tiny: \*\.txt and sub/\*\.txt not found in"):
        data.locate("tiny")


def test_package_source():
    path = data.locate("co2")
    assert path.read_text().startswith("date,co2\n19580329,316.1\n")
    assert path.parts[-4:] == ("statsmodels", "datasets", "co2", "co2.csv")


def test_package_that_is_not_installed(declare):
    declare(files={"x": {"bytes": 1, "sha256": None}}, source="package:no_such_package")
    for call in (data.locate, data.fetch, data.verify, data.where):
        with pytest.raises(data.DataError, match="run: pip install no_such_package"):
            call("tiny")


def test_package_without_the_file(declare):
    declare(files={"x": {"bytes": 1, "sha256": None}}, source="package:yaml")
    with pytest.raises(data.DataError, match="this version of yaml does not ship it"):
        data.locate("tiny")


@pytest.mark.parametrize("call", [data.locate, data.fetch, data.verify, data.where, data.entry])
def test_unknown_name(call):
    with pytest.raises(data.DataError, match=r"'Etth'; nearest: etth1, etth2"):
        call("Etth")
    with pytest.raises(data.DataError, match=r"'\?'; all names: pleiad list datasets"):
        call("?")


def test_import_and_package_source_are_light():
    script = """
import sys, data
print([data.entry("etth1").name], sorted({"numpy", "pandas", "pooch", "requests", "rich", "torch"}
    & set(sys.modules)))
data.locate("co2")
print("statsmodels" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['etth1'] []\nFalse\n"
