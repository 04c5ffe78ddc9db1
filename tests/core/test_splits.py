import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.duplicates import duplicates
from core.errors import UserError
from core.split_plan import Split
from core.splits import split

PARTS = ("train", "val", "test")
FORMS = "random, stratified, group:COLUMN, time:COLUMN, column:COLUMN"
RULES = ["random", "stratified", "group:g", "time:t"]
examples = settings(deadline=None, max_examples=40, database=None)


def table(rows, seed=0):
    """Rows with an id, a group of about ten rows, a label of three classes and a time."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "id": [f"r{number}" for number in range(rows)],
            "g": rng.integers(0, max(rows // 10, 4), rows),
            "y": rng.choice(["a", "b", "c"], rows, p=[0.6, 0.3, 0.1]),
            "t": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, rows, rows), "h"),
            "x": rng.normal(size=rows),
        }
    )


def homes(frame, found):
    """Which part or fold each id is in."""
    return dict(zip(frame["id"], found.place, strict=True))


def whole(found, rows):
    """The three parts are ascending, disjoint and hold every row."""
    parts = [found.train, found.val, found.test]
    assert all((np.diff(part) > 0).all() and len(part) for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(rows))


@examples
@given(rows=st.integers(60, 300), seed=st.integers(0, 99), rule=st.sampled_from(RULES))
def test_parts_hold_every_row_once(rows, seed, rule):
    frame = table(rows, seed)
    found = split(frame, rule, ids="id", label="y", seed=seed)
    whole(found, rows)
    assert found.rule == rule


@examples
@given(
    seed=st.integers(0, 999),
    rule=st.sampled_from(["random", "stratified", "group:g"]),
    folds=st.sampled_from([None, 3, 5]),
    ids=st.sampled_from(["id", None]),
    kept=st.integers(150, 400),
)
def test_no_row_moves_when_others_come_go_or_change_order(seed, rule, folds, ids, kept):
    frame = table(400)
    options = {"ids": ids, "label": "y", "folds": folds, "seed": seed}
    before = split(frame, rule, **options)
    some = frame.sample(kept, random_state=seed)
    after = split(some, rule, **options)
    if not any("moved" in note for note in before.notes + after.notes):
        every = homes(frame, before)
        assert homes(some, after) == {name: every[name] for name in some["id"]}
    shuffled = frame.sample(frac=1, random_state=seed)
    assert homes(shuffled, split(shuffled, rule, **options)) == homes(frame, before)


def test_large_sets_need_no_moves_and_meet_the_shares():
    frame = table(10_000)
    for rule in ("random", "stratified", "group:g"):
        found = split(frame, rule, ids="id", label="y")
        assert found.notes == ()
        shares = [len(part) / 10_000 for part in (found.train, found.val, found.test)]
        assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.05 if "group" in rule else 0.015)


@examples
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=6).filter(
        lambda s: sum(s) > 5 and max(s) > 1
    ),
    seed=st.integers(0, 99),
    folds=st.sampled_from([None, 3, 4]),
)
def test_every_class_is_in_every_part_where_it_has_the_rows(sizes, seed, folds):
    y = np.repeat(np.arange(len(sizes)), sizes)
    frame = pd.DataFrame({"y": y, "x": np.arange(len(y))})
    found = split(frame, "stratified", label="y", seed=seed, folds=folds)
    for label, size in enumerate(sizes):
        here = set(found.place[y == label])
        assert len(here) == min(size, folds or 3)
        if folds is None and min(sizes) > 2:
            assert here == {0, 1, 2}


def test_a_move_touches_its_own_class_only():
    frame = table(300)
    rare = pd.DataFrame({"id": ["p", "q", "r"], "g": 0, "y": "rare", "t": frame["t"][0], "x": 0.0})
    more = pd.concat([frame, rare])
    found = split(more, "stratified", ids="id", label="y", seed=4)
    assert sorted(found.part[-3:]) == [0, 1, 2]
    assert (
        homes(more, found).items()
        >= homes(frame, split(frame, "stratified", ids="id", label="y", seed=4)).items()
    )
    assert found.notes[0].startswith("different rows of class rare moved into a part that hashing")


@examples
@given(seed=st.integers(0, 99), groups=st.integers(5, 40), folds=st.sampled_from([None, 5]))
def test_no_group_is_cut(seed, groups, folds):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"my: group": rng.integers(0, groups, 20 * groups), "x": 0})
    found = split(frame, "group:my: group", folds=folds, seed=seed)
    whole(found, len(frame))
    assert (pd.Series(found.place).groupby(frame["my: group"]).nunique() == 1).all()


@pytest.mark.parametrize("rule", ["random", "stratified", "group:g"])
def test_folds_test_every_row_once(rule):
    frame = table(200)
    runs = [split(frame, rule, ids="id", label="y", folds=4, fold=k) for k in range(4)]
    for fold, found in enumerate(runs):
        whole(found, 200)
        assert (found.val == runs[(fold + 1) % 4].test).all()
    assert sorted(np.concatenate([found.test for found in runs])) == list(range(200))


def test_folds_of_time_roll_forward():
    frame = table(200)
    tested = []
    for fold in range(4):
        found = split(frame, "time:t", folds=4, fold=fold)
        t = frame["t"].to_numpy()
        assert t[found.train].max() < t[found.val].min()
        assert t[found.val].max() < t[found.test].min()
        unused = 200 - len(found.train) - len(found.val) - len(found.test)
        assert unused == (t > t[found.test].max()).sum()
        assert any("unused" in note for note in found.notes) == (fold < 3)
        tested.append(found.test)
    assert len(np.unique(np.concatenate(tested))) == sum(map(len, tested))
    assert np.mean(list(map(len, tested))) == pytest.approx(200 / 6, abs=4)


@examples
@given(st.lists(st.integers(0, 9), min_size=3, max_size=40).filter(lambda t: len(set(t)) > 2))
def test_time_parts_are_in_order_and_no_time_is_cut(times):
    found = split(pd.DataFrame({"t": times}), "time:t")
    whole(found, len(times))
    t = np.array(times)
    assert t[found.train].max() < t[found.val].min()
    assert t[found.val].max() < t[found.test].min()


def test_time_borders_lie_at_the_shares():
    found = split(pd.DataFrame({"t": range(100, 0, -1)}), "time:t")
    assert [len(found.train), len(found.val), len(found.test)] == [70, 10, 20]
    assert found.test[-1] == 19


def test_times_of_any_form():
    days = pd.date_range("2024-03-30", periods=10, tz="Europe/Berlin")  # the clock changes
    forms = [
        days,
        days.tz_localize(None),
        days.strftime("%Y-%m-%d"),
        days.strftime("%Y/%m/%d 0:00"),
        [stamp.isoformat() for stamp in days],
        pd.Categorical(days.strftime("%Y-%m-%d")),
        [stamp.date() for stamp in days],
        pd.array(range(10), dtype="Int64"),
    ]
    for form in forms:
        found = split(pd.DataFrame({"t": form}), "time:t")
        assert found.train.tolist() == list(range(7))
        assert found.val.tolist() == [7]
        assert found.test.tolist() == [8, 9]


def test_columns_say_the_part():
    words = ["Training", "dev", "TEST", "valid", " train ", "Validation", "testing", "unused"]
    frame = pd.DataFrame({"part": pd.Categorical(words)})
    found = split(frame, "column:part")
    assert [found.train.tolist(), found.val.tolist(), found.test.tolist()] == [
        [0, 4],
        [1, 3, 5],
        [2, 6],
    ]
    found = split(pd.DataFrame({"part": ["train", "test"]}), "column:part")
    assert found.notes == ("column 'part' names no val rows",)
    found = split(pd.DataFrame({"k": [0.0, 1, 2, 0]}), "column:k", folds=3, fold=2)
    assert [found.test.tolist(), found.val.tolist(), found.train.tolist()] == [[2], [0, 3], [1]]


@pytest.mark.parametrize("rule", ["random", "group:g", "stratified", "time:t"])
@pytest.mark.parametrize("seed", range(20))
def test_ten_rows(rule, seed):
    frame = table(10, seed).assign(g=list("aabbccddee"), t=range(10))
    whole(split(frame, rule, label="y", seed=seed), 10)


@pytest.mark.parametrize("seed", range(20))
def test_rows_that_move_train_first_and_are_told_of(seed):
    frame = pd.DataFrame({"x": [1, 2, 3], "y": ["a", "b", "b"]})
    found = split(frame, "random", seed=seed)
    assert sorted(found.part) == [0, 1, 2]
    found = split(frame.iloc[:2], "random", fractions=(0.8, 0, 0.2), seed=seed)
    assert sorted(found.part) == [0, 2]


@pytest.mark.parametrize("folds", [None, 4])
def test_moves_do_not_depend_on_the_order_of_rows(folds):
    for seed in range(20):
        frame = table(14, seed)
        shuffled = frame.sample(frac=1, random_state=seed)
        for rule in ("random", "stratified", "group:g"):
            options = {"ids": "id", "label": "y", "folds": folds, "seed": seed}
            before, after = split(frame, rule, **options), split(shuffled, rule, **options)
            assert homes(frame, before) == homes(shuffled, after)


def test_lone_rows_of_a_class_spread_over_the_folds():
    frame = pd.DataFrame({"id": range(60), "y": [*range(15), *[15] * 45]})
    found = split(frame, "stratified", ids="id", label="y", folds=3)
    assert set(found.place[:15]) == {0, 1, 2}


def test_shares_of_none():
    frame = table(200)
    for rule in ("random", "time:t", "group:g"):
        found = split(frame, rule, fractions=(0.8, 0.2, 0))
        assert len(found.test) == 0
        assert len(found.train) + len(found.val) == 200
        found = split(frame, rule, fractions=(0.8, 0, 0.2))
        assert len(found.val) == 0
        assert len(found.test) > 0


def test_shares_far_from_those_asked_for_are_told():
    frame = pd.DataFrame({"g": ["big"] * 90 + list("abcdefghij"), "x": range(100)})
    assert "of the rows, not 70%, 10%, 20%" in split(frame, "group:g").notes[-1]


def test_ids_that_look_alike_are_the_same():
    numbers = pd.DataFrame({"id": range(50), "y": np.tile([True, False], 25)})
    forms = [
        numbers,
        numbers.assign(id=numbers["id"].astype(str)),
        numbers.assign(id=numbers["id"].astype(float)),
        numbers.assign(id=numbers["id"].astype("category")),
        numbers.assign(id=numbers["id"].astype(object), y=numbers["y"].astype(object)),
    ]
    for rule in ("random", "stratified", "group:id"):
        ids = None if rule.startswith("group") else "id"
        places = [split(form, rule, ids=ids, label="y").place for form in forms]
        assert all((place == places[0]).all() for place in places)


def test_equal_rows_without_ids_stay_together():
    frame = pd.DataFrame({"x": np.repeat(np.arange(50), 4), "y": np.tile([1, 0], 100)})
    found = split(frame, "random")
    assert (pd.Series(found.place).groupby([frame["x"], frame["y"]]).nunique() == 1).all()
    assert duplicates(frame, found) == []


def wrong(frame, rule, told, **options):
    with pytest.raises(UserError) as caught:
        split(frame, rule, **options)
    message = str(caught.value)
    assert told in message
    assert "--data." in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("randm", "no such rule; did you mean random?; write random, stratified"),
        ("groupp:g", "no such rule; did you mean group?"),
        ("zzz", f"there is no such rule; write {FORMS}"),
        ("", "there is no such rule; write"),
        ("group", "a column is missing; write group:COLUMN, of id, g, y, t, x"),
        ("time:", "a column is missing"),
        ("random:x", "it takes no column; write random"),
        ("group:gg", "there is no column 'gg'; did you mean g?; there are id, g, y, t, x"),
        ("runs/0/split.parquet", "there is no such file"),
        ("stratified", "names no column of classes; write random"),
        ("group:one", "no column 'one'"),
        ("column:y", "column 'y' may hold train, val, test or unused, not a, b, c"),
        (
            "time:y",
            "row 1 of column 'y' holds 'b', which is no date of the years 1678 to 2261; write",
        ),
    ],
)
def test_wrong_rules(rule, told):
    wrong(table(60), rule, told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"folds": 2}, "--data.folds=2 must be at least 3"),
        ({"folds": 5, "fold": 5}, "--data.fold=5 must lie from 0 to 4"),
        ({"folds": 5, "fold": -1}, "--data.fold=-1 must lie from 0 to 4"),
        ({"fold": 1}, "--data.fold=1 needs --data.folds"),
        ({"fractions": (0.7, 0.1, 0.1)}, "summing to 1"),
        ({"fractions": (0, 0.5, 0.5)}, "some left to train"),
        ({"fractions": (0.7, 0.6, -0.3)}, "must be the shares"),
        ({"ids": "g"}, "ids must differ, but column 'g' holds"),
        ({"ids": "idd"}, "no column 'idd'; did you mean id?"),
    ],
)
def test_wrong_options(options, told):
    wrong(table(60), "random", told, **options)


def test_wrong_data():
    frame = table(60)
    wrong(frame.iloc[:0], "random", "has no rows")
    for rule in ("random", "stratified"):
        wrong(frame.iloc[:1], rule, "rows in the data: 1, too few for train, test, val", label="y")
    wrong(frame.iloc[:1], "time:t", "times in the data: 1, too few for 3 parts")
    wrong(frame.iloc[:4], "random", "rows in the data: 4, too few for 5 folds", folds=5)
    wrong(frame.assign(g=1), "group:g", "groups in the data: 1, too few")
    wrong(
        frame.assign(g=frame.index % 4),
        "group:g",
        "groups in the data: 4, too few for 5 folds",
        folds=5,
    )
    wrong(
        frame.assign(t=frame.index % 4),
        "time:t",
        "times in the data: 4, too few for 5 parts",
        folds=3,
    )
    wrong(frame.assign(k=frame.index % 3), "column:k", "has no row of fold 3", folds=4)
    wrong(frame.assign(k=1 + frame.index % 3), "column:k", "may hold 0 to 2, not 3", folds=3)
    wrong(frame.assign(p="test"), "column:p", "no row of the data is left for train")
    wrong(frame, "stratified", "'x' has 60 values in 60 rows", label="x")
    wrong(frame.iloc[:9], "stratified", "'id' has 9 values in 9 rows", label="id")
    wrong(frame.assign(t="today"), "time:t", "row 1 of column 't' holds 'today'")
    wrong(frame, "stratified", "did you mean y?", label="yy")
    wrong(frame.assign(y=frame["x"].round(1)), "stratified", "holds no classes", label="y")
    twice = pd.concat([frame, frame["g"]], axis=1)
    wrong(twice, "group:g", "2 columns have the name 'g'")


@pytest.mark.parametrize("empty", [None, np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("rule", ["stratified", "group:y", "time:y", "column:y", "random"])
def test_missing_cells_name_the_row(rule, empty):
    frame = table(60)
    frame["y"] = frame["y"].astype(object)
    frame.loc[6, "y"] = frame.loc[8, "y"] = empty
    ids = "y" if rule == "random" else None
    wrong(frame, rule, "row 7 has no value in column 'y' (2 such rows)", label="y", ids=ids)


def test_names_of_columns():
    frame = table(60).rename(columns={"g": "a b:c"}).assign(**{"7": 1})
    assert split(frame, "group: a b:c").rule == "group:a b:c"
    numbered = pd.DataFrame({0: range(20), 1: np.arange(20) % 5})
    whole(split(numbered, "group:1"), 20)


@pytest.mark.parametrize("rule", [*RULES, "column:p"])
def test_a_saved_split_is_the_same_and_keeps_its_rows(tmp_path, rule):
    frame = table(200).assign(p=np.resize(["train", "val", "test"], 200))
    first = split(frame.iloc[:150], rule, ids="id", label="y", seed=5)
    path = tmp_path / "split.parquet"
    first.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["split.parquet"]
    saved = Split.load(path)
    assert saved.plan == first.plan
    assert saved.notes == first.notes
    assert (saved.keys == first.keys).all()
    assert all((getattr(saved, part) == getattr(first, part)).all() for part in PARTS)
    assert pq.read_table(path).column_names == ["id", "part"]

    other = frame.iloc[50:].sample(frac=1, random_state=0)
    again = split(other, str(path), ids="id")
    known, now = homes(frame.iloc[:150], first), homes(other, again)
    assert all(now[name] == known[name] for name in now.keys() & known.keys())
    whole(again, 150)
    assert again.rule == rule
    assert again.notes[:2] == (
        f"rows that {path} does not know: 50, placed by {rule}",
        f"rows of {path} that are gone: 50",
    )
    if rule.startswith("group"):
        assert (pd.Series(again.place).groupby(other["g"].to_numpy()).nunique() == 1).all()
    if rule.startswith("time"):
        assert other["t"].iloc[again.train].max() < other["t"].iloc[again.val].min()


def test_a_new_row_follows_a_group_that_was_moved(tmp_path):
    path = tmp_path / "split.parquet"
    for seed in range(20):
        frame = pd.DataFrame({"g": list("abc"), "x": range(3)})
        split(frame, "group:g", seed=seed).save(path)
        more = pd.DataFrame({"g": list("abccba"), "x": range(6)})
        found = split(more, str(path))
        assert (found.place[:3] == found.place[:2:-1]).all()
    changed = pd.DataFrame({"id": range(3), "g": list("abc")})
    split(changed, "group:g", ids="id").save(path)
    wrong(changed.assign(g=list("aac")), str(path), "the groups have changed", ids="id")


def test_a_saved_split_serves_every_fold(tmp_path):
    frame, path = table(100), tmp_path / "split.parquet"
    for rule in ("group:g", "time:t"):
        split(frame, rule, ids="id", folds=4, fold=1).save(path)
        assert pq.read_table(path).column_names == ["id", "part", "fold"]
        for fold in range(4):
            found = split(frame, str(path), ids="id", folds=4, fold=fold)
            assert (found.part == split(frame, rule, ids="id", folds=4, fold=fold).part).all()
        assert (split(frame, str(path), ids="id").part == Split.load(path).part).all()
        wrong(frame, str(path), "holds 4 folds", ids="id", folds=5)


def test_files_that_are_no_saved_split(tmp_path):
    path = tmp_path / "split.parquet"
    split(table(60), "random", ids="id").save(path)
    wrong(table(60).assign(id=range(60)), str(path), "none of its rows is in the data", ids="id")
    content = path.read_bytes()
    bad = [b"", b"junk", content[:-20]]
    for damaged in bad:
        path.write_bytes(damaged)
        wrong(table(60), str(path), "not a saved split")
    pq.write_table(pa.table({"id": ["a"], "part": ["train"]}), path)
    wrong(table(60), str(path), "not a saved split")
    split(table(60), "time:t", ids="id").save(path)
    wrong(table(61).assign(t=range(61)), str(path), "by dates", ids="id")


def test_duplicates_are_counted_by_pair_of_parts():
    frame = pd.DataFrame(
        {
            "id": range(8),
            "part": ["train", "train", "val", "val", "test", "test", "test", "train"],
            "x": [1.0, np.nan, 1, 5, 1, 6, np.nan, 1],
            "z": ["a", None, "a", "b", "a", "b", None, "a"],
        }
    )
    found = split(frame, "column:part", ids="id")
    assert duplicates(frame, found) == [
        ("test", "train", 2, (4, 0)),
        ("val", "train", 1, (2, 0)),
        ("test", "val", 1, (4, 2)),
    ]
    assert duplicates(frame, found, ["z"])[2].rows == 2
    first = duplicates(frame, found)[0].note
    assert first.startswith(
        "2 rows stand in test and, equal in every cell, in train too (first: row 5 = row 1);"
    )
    assert "--data.split=group:COLUMN" in first
    with pytest.raises(UserError, match="no column 'zz'; did you mean z"):
        duplicates(frame, found, ["zz"])


def test_many_rows():
    frame = table(200_000)
    found = split(frame, "stratified", label="y")
    duplicates(frame, found)
    split(frame, "group:g", ids="id")
    split(frame, "time:t", ids="id", folds=5)
    assert found.notes == ()


@pytest.mark.data
def test_intrusions(real_data):
    folder = real_data / "security" / "NSL-KDD"
    parts = {"train": "KDDTrain+_20Percent.txt", "test": "KDDTest-21.txt"}
    frame = pd.concat(
        [pd.read_csv(folder / name, header=None).assign(p=part) for part, name in parts.items()],
        ignore_index=True,
    )
    published = split(frame, "column:p")
    assert published.notes == ("column 'p' names no val rows",)
    found = duplicates(frame, published, [str(name) for name in range(41)])
    content = frame.drop(columns=["p", 41, 42]).astype(str).agg("|".join, axis=1)
    shared = content[published.test].isin(set(content[published.train]))
    assert [pair.rows for pair in found] == [shared.sum()]
    assert content[found[0].first[0]] == content[found[0].first[1]]

    stratified = split(frame, "stratified", label="41")
    counts = pd.crosstab(frame[41], stratified.part)
    enough = frame.drop_duplicates()[41].value_counts() >= 3
    assert (counts[enough.reindex(counts.index)] > 0).all(axis=None)
    grouped = split(frame, "group:2")
    assert frame[2].nunique() > 50
    assert (pd.Series(grouped.part).groupby(frame[2]).nunique() == 1).all()


@pytest.mark.data
def test_sentences_by_their_source(real_data):
    with zipfile.ZipFile(real_data / "nlp" / "CoLA" / "cola_public.zip") as archive:
        name = next(n for n in archive.namelist() if n.endswith("raw/in_domain_train.tsv"))
        with archive.open(name) as file:
            frame = pd.read_csv(file, sep="\t", header=None, quoting=3)
    frame.columns = pd.Index(["source", "label", "mark", "sentence"])
    found = split(frame, "group:source", label="label", seed=1)
    whole(found, len(frame))
    assert (pd.Series(found.part).groupby(frame["source"]).nunique() == 1).all()
    by_row = split(frame.assign(id=range(len(frame))), "random", ids="id")
    repeated = duplicates(frame, by_row, ["sentence"])
    assert sum(pair.rows for pair in repeated) > 0


@pytest.mark.data
def test_rates_by_day(real_data):
    path = real_data / "time_series" / "exchange_rate" / "exchange_rate.csv"
    frame = pd.read_csv(path)  # dates such as 1990/1/1 0:00
    found = split(frame, "time:date")
    assert [len(found.train), len(found.val), len(found.test)] == [5312, 759, 1517]
    assert (np.diff(found.part) >= 0).all()
