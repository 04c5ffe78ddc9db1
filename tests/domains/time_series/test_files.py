"""Files: what is read, what is repaired and said, and what is refused in one line with its line."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels
import torch
from PIL import Image
from torch import nn

from core.errors import UserError
from domains.time_series import tables
from domains.time_series.calendar_features import calendar_features
from domains.time_series.files import read_csv, show
from domains.time_series.forecast_files import ForecastFiles

VALUES = [f"{value:.3f}" for value in 10 + 3 * np.sin(np.arange(40))]


def _days(freq="D", form="%Y-%m-%d", start="2020-01-01"):
    return list(pd.date_range(start, periods=40, freq=freq).strftime(form))


def _text(dates, values, header="date,a"):
    separator = next(mark for mark in header if mark in ",;|\t")
    rows = (f"{date}{separator}{value}" for date, value in zip(dates, values, strict=True))
    return "\n".join([header, *rows]) + "\n"


@pytest.fixture
def write(tmp_path):
    def _write(text, name="x.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


def _without(items, *places):
    return [item for place, item in enumerate(items) if place not in places]


def _with(items, place, item):
    return [*items[:place], item, *items[place + 1 :]]


def _refused(path, **options):
    """Give the message, which must be one line that begins with the file."""
    with pytest.raises(UserError) as told:
        read_csv(path, **options)
    message = str(told.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_a_plain_file(write):
    series = read_csv(write(_text(_days(), VALUES)))
    assert series.values.dtype == np.float64
    np.testing.assert_allclose(series.values[:, 0], np.array(VALUES, float))
    assert (series.columns, series.freq, series.time_column) == (("a",), "D", "date")
    assert series.time[0] == pd.Timestamp("2020-01-01")
    assert series.repairs == ()


@pytest.mark.parametrize(
    ("freq", "form"),
    [
        ("D", "%Y-%m-%d"),
        ("D", "%Y/%m/%d"),
        ("D", "%Y%m%d"),
        ("D", "%d.%m.%Y"),
        ("D", "%d/%m/%Y"),
        ("D", "%m/%d/%Y"),
        ("MS", "%d/%m/%Y"),
        ("MS", "%d.%m.%Y"),
        ("MS", "%m/%d/%Y"),
        ("MS", "%Y-%m"),
        ("MS", "%b %Y"),
        ("ME", "%Y-%m-%d"),
        ("QS-OCT", "%Y-%m-%d"),
        ("QE-DEC", "%Y-%m-%d"),
        ("YS-JAN", "%Y-%m-%d"),
        ("W-WED", "%Y-%m-%d"),
        ("B", "%d-%b-%Y"),
        ("h", "%Y-%m-%d %H:%M:%S"),
        ("h", "%Y-%m-%dT%H:%M:%S"),
        ("h", "%m/%d/%Y %I:%M %p"),
        ("15min", "%Y-%m-%d %H:%M"),
        ("2h", "%Y-%m-%d %H:%M:%S.%f"),
    ],
)
def test_dates_as_people_write_them(write, freq, form):
    series = read_csv(write(_text(_days(freq, form), VALUES)))
    assert series.freq == freq
    assert list(series.time) == list(pd.date_range("2020-01-01", periods=40, freq=freq))


def test_dates_without_leading_zeros(write):
    times = pd.date_range("1990-01-01", periods=40, freq="D")
    text = _text([f"{t.year}/{t.month}/{t.day} 0:00" for t in times], VALUES)
    assert list(read_csv(write(text)).time) == list(times)


def test_numbers_as_dates_where_the_name_says_so(write):
    years = read_csv(write(_text(range(1980, 2020), VALUES, "Year,a")))
    assert (years.freq, years.time[0]) == ("YS-JAN", pd.Timestamp("1980-01-01"))
    seconds = read_csv(write(_text(range(1577836800, 1577836800 + 144000, 3600), VALUES, "time,a")))
    assert (seconds.freq, seconds.time[0]) == ("h", pd.Timestamp("2020-01-01"))
    assert seconds.repairs == ("dates were read as s since 1970-01-01 UTC",)


@pytest.mark.parametrize("name", ["Date", "TIMESTAMP", "ds", "When"])
def test_the_date_column_is_found(write, name):
    assert read_csv(write(_text(_days(), VALUES, f"{name},a"))).time_column == name


def test_the_order_of_day_and_month_is_said(write):
    series = read_csv(write(_text(_days(form="%d/%m/%Y"), VALUES)))
    assert series.repairs == ("dates such as 01/01/2020 were read with the day first",)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_decimal_commas_where_commas_do_not_separate(write, separator):
    commas = [value.replace(".", ",") for value in VALUES]
    series = read_csv(write(_text(_days(), commas, f"date{separator}a")))
    np.testing.assert_allclose(series.values[:, 0], np.array(VALUES, float))
    assert "numbers are written with a decimal comma" in series.repairs


def test_harmless_oddities(write):
    text = _text(_days(), VALUES)
    odd = ["\ufeff" + text, text.replace("\n", "\r\n"), "\n\n" + text, text + "\n\n"]
    for variant in odd:
        np.testing.assert_array_equal(read_csv(write(variant)).values, read_csv(write(text)).values)


def test_columns_that_are_no_channel_are_left_out_aloud(write):
    rows = [f"{n},{d},{v},shop,,{v}" for n, (d, v) in enumerate(zip(_days(), VALUES, strict=True))]
    series = read_csv(write("\n".join([",date,a,store,note,b", *rows])))
    assert series.columns == ("a", "b")
    assert series.repairs == (
        "the first column has no name and counts the rows; it was left out",
        "column 'store' holds no numbers and was left out",
        "column 'note' holds no numbers and was left out",
    )


def test_dates_in_a_first_column_without_name(write):
    assert read_csv(write(_text(_days(), VALUES, ",a"))).time_column == "date"


def test_target_keeps_its_order(write):
    rows = [f"{date},{v},1{v},2{v}" for date, v in zip(_days(), VALUES, strict=True)]
    path = write("\n".join(["date,a,b,c", *rows]))
    assert read_csv(path, target=["c", "a"]).columns == ("c", "a")
    assert read_csv(path, target="b").columns == ("b",)
    assert "--data.target=x: there is no such column; there is a, b, c" in _refused(
        path, target="x"
    )
    assert "--data.target=date: there is no such column" in _refused(path, target="date")


def test_rows_out_of_order_are_sorted(write):
    series = read_csv(write(_text(_days()[::-1], VALUES)))
    np.testing.assert_allclose(series.values[:, 0], np.array(VALUES, float)[::-1])
    assert series.repairs == ("rows were not in the order of time and were sorted",)


def test_a_constant_column_is_kept(write):
    series = read_csv(write(_text(_days(), ["5"] * 40)))
    assert series.repairs == ("column 'a' is constant",)


def test_missing_values(write):
    path = write(_text(_days(), _with(_with(VALUES, 5, ""), 0, "NA")))
    assert _refused(path) == (
        ":2: 2 missing values in a (2), the first here in column 'a'; fill them in, or pass"
        " `--data.gaps=mask`, `--data.gaps=interpolate` or `--data.gaps=ffill`"
    )
    numbers = np.array(VALUES, float)
    line = read_csv(path, gaps="interpolate")
    assert line.values[5, 0] == pytest.approx((numbers[4] + numbers[6]) / 2)
    assert line.values[0, 0] == numbers[1]
    assert line.repairs == ("2 missing values were interpolated",)
    assert read_csv(path, gaps="ffill").values[5, 0] == numbers[4]


def test_missing_rows(write):
    path = write(_text(_without(_days(), 5, 6, 20), _without(VALUES, 5, 6, 20)))
    assert _refused(path).startswith(
        ":6: 3 rows are missing, the first after this line (2020-01-06, step D); fill them in"
    )
    numbers = np.array(VALUES, float)
    series = read_csv(path, gaps="interpolate")
    assert len(series.values) == 40
    third = (numbers[7] - numbers[4]) / 3
    np.testing.assert_allclose(series.values[5:7, 0], numbers[4] + [third, 2 * third])
    assert series.repairs == ("3 missing rows were interpolated",)


def test_rows_may_be_taken_as_they_stand(write):
    dates = _with(_without(_days(), 5, 6, 20), 9, "2020-01-02")
    path = write(_text(dates, _without(VALUES, 5, 6, 20)))
    series = read_csv(path, freq="D", gaps="keep")
    np.testing.assert_array_equal(series.values[:, 0], _without(np.array(VALUES, float), 5, 6, 20))
    assert [str(day)[:10] for day in series.time] == dates
    assert series.repairs == ("rows were taken as they stand",)
    path = write(_text(_days(), _with(VALUES, 5, "")))
    assert _refused(path, freq="D", gaps="keep").startswith(":7: 1 missing values in a (1)")


@pytest.mark.parametrize("freq", ["B", "MS", "ME", "QS-APR", "YS-JAN", "W-SUN", "15min", "2D"])
def test_the_step_is_found_despite_missing_rows(write, freq):
    times = _without(_days(freq, "%Y-%m-%d %H:%M"), 7, 8, 20)
    series = read_csv(write(_text(times, _without(VALUES, 7, 8, 20))), gaps="ffill")
    assert list(series.time) == list(pd.date_range("2020-01-01", periods=40, freq=freq))


REFUSED = {
    "empty": ("", ": empty; it needs a header"),
    "blank": ("\n \n", ": empty; it needs a header"),
    "no rows": ("date,a\n", ": has a header but no rows"),
    "no header": ("2020-01-01,1\n2020-01-02,2\n2020-01-03,3\n", ":1: the first line holds data"),
    "not text": (bytes(1000), ": not a text file"),
    "not UTF-8": ("date,\xe9\n2020-01-01,1\n".encode("latin1"), ": not UTF-8 text (byte 5)"),
    "no date column": (_text(VALUES, VALUES, "b,a"), ": no date column among b, a; name it by"),
    "two date columns": (
        _text(_days(), [f"{v},{d}" for v, d in zip(VALUES, _days(), strict=True)], "Then,a,When"),
        ": the columns Then, When all hold dates; name it by `--data.time=COLUMN`",
    ),
    "no date in the date column": (
        _text(VALUES, VALUES),
        ":2: column 'date': '10.0' is not a date; write dates as 2024-01-31",
    ),
    "one bad date": (
        _text(_with(_days(), 5, "hello"), VALUES),
        ":7: column 'date': 'hello' is not a date like the others; write it like 2020-01-01",
    ),
    "one empty date": (_text(_with(_days(), 5, ""), VALUES), ":7: column 'date': no date"),
    "repeated": (
        _text(_with(_days(), 5, _days()[4]), VALUES),
        ":7: 2020-01-05 stands in line 6 already; 1 times are repeated",
    ),
    "irregular": (
        _text(_with(_days(), 5, "2020-01-06 05:00:00"), VALUES),
        ": the times are irregular: most rows are 1 day apart, but 2020-01-06 05:00:00",
    ),
    "mostly absent": (
        _text([*_days("s", "%Y-%m-%d %H:%M:%S")[:39], "2020-06-01 00:00:00"], VALUES),
        ": the times are irregular: most rows are 00:00:01 apart, but there are only 40 rows",
    ),
    "mixed zones": (
        _text([f"2020-01-01 {h:02}:00:00+0{1 + (h > 3)}:00" for h in range(9)], VALUES[:9]),
        ":6: column 'date': 2020-01-01 04:00:00+02:00 is in another time zone than",
    ),
    "text": (
        _text(_days(), _with(VALUES, 5, "abc")),
        ":7: column 'a': 'abc' is not a number; correct it, or leave the cell empty",
    ),
    "text after a blank line": (
        _text(_days(), _with(VALUES, 5, "abc")).replace("2020-01-03", "\n2020-01-03"),
        ":8: column 'a': 'abc' is not a number",
    ),
    "thousands": (
        _text(_days(), ['"1,234"'] * 40),
        ":2: column 'a': '1,234' is not a number; write a decimal point and no separator",
    ),
    "points and commas": (
        _text(_days(), _with(VALUES, 5, "1.234,5"), "date;a"),
        ":7: column 'a': '1.234,5' is not a number",
    ),
    "infinite": (
        _text(_days(), _with(VALUES, 5, "inf")),
        ":7: column 'a': 1 infinite values, the first here",
    ),
    "no numbers": (_text(_days(), ["x"] * 40), ": no column holds numbers besides the dates"),
    "a name twice": (
        _text(_days(), [f"{v},1" for v in VALUES], "date,a,a"),
        ": the header names a twice; rename one",
    ),
    "a nameless column": (
        _text(_days(), [f"{v},1" for v in VALUES], "date,a,"),
        ": column 3 has no name; give it one in the header",
    ),
    "too many fields": (
        _text(_days(), _with(VALUES, 5, "1,2")),
        ": not a table (Expected 2 fields in line 7, saw 3)",
    ),
    "too many fields at once": (
        _text(_days(), _with(VALUES, 0, "1,2")),
        ":2: the row has more fields than the header, which names 2",
    ),
    "an open quote": (
        _text(_days(), _with(VALUES, 5, '"1')),
        ": not a table (EOF inside string",
    ),
    "too short": (_text(_days()[:2], VALUES[:2]), ": 2 rows do not show how far apart they are"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("gaps", ["error", "interpolate"])
def test_refused_with_line_and_fix(write, case, gaps):
    text, expected = REFUSED[case]
    assert _refused(write(text), gaps=gaps).startswith(expected)


def test_refused_options(write, tmp_path, monkeypatch):
    path = write(_text(_days(), VALUES))
    assert _refused(tmp_path / "none.csv") == ": no such file"
    assert _refused(tmp_path) == ": no such file"
    assert "--data.time=when: there is no such column; there is date, a" in _refused(
        path, time="when"
    )
    assert "'fortnight' is not a frequency" in _refused(path, freq="fortnight")
    assert ":2: 2020-01-01 and the rows around it do not keep to the step 's'" in _refused(
        path, freq="s"
    )
    assert "do not keep to the step 'W-SUN'" in _refused(path, freq="W-SUN")
    with pytest.raises(UserError, match=r"data.gaps='fill' must be one of error, mask"):
        read_csv(path, gaps="fill")
    monkeypatch.setattr(tables, "LIMIT_BYTES", 100)
    assert "is more than the 100 that can be read" in _refused(path)


def test_a_named_frequency_and_column(write):
    rows = [
        f"{a},{b},{v}" for a, b, v in zip(_days(), _days(start="2021-01-01"), VALUES, strict=True)
    ]
    path = write("\n".join(["date,when,a", *rows]))
    series = read_csv(path, time="when", freq="D")
    assert series.time[0] == pd.Timestamp("2021-01-01")


class _Last(nn.Module):
    """Repeat the last value; add the sum of the marks where there are any."""

    def __init__(self, horizon):
        super().__init__()
        self.horizon = horizon
        self.unused = nn.Linear(1, 1)

    def forward(self, past, *marks):
        assert past.dtype == torch.float32
        assert not self.training
        forecast = past[:, -1:].expand(-1, self.horizon, -1)
        for mark in marks:
            forecast = forecast + mark.sum()
        return forecast


FILES = ForecastFiles(
    columns=("a", "b"),
    time="date",
    freq="D",
    lookback=4,
    horizon=3,
    mean=(10.0, 20.0),
    std=(2.0, 1.0),
)


def _two(dates, extra=""):
    rows = [f"{d},{v},{n}{extra}" for n, (d, v) in enumerate(zip(dates, VALUES, strict=False))]
    return "\n".join([f"date,a,b{',c' if extra else ''}", *rows]) + "\n"


def test_predict_file_continues_in_the_units_of_the_file(write, tmp_path):
    source = write(_two(_days(), ",7"))
    output, plot = tmp_path / "out.csv", tmp_path / "out.png"
    told = FILES.predict_file(_Last(3).train(), source, output, plot)
    assert told == f"{output}: 3 steps of 2 columns, 2020-02-10 to 2020-02-12 (left out: c)"
    frame = pd.read_csv(output)
    assert list(frame.columns) == ["date", "a", "b"]
    assert frame["date"].tolist() == ["2020-02-10", "2020-02-11", "2020-02-12"]
    np.testing.assert_allclose(frame["a"], float(VALUES[-1]), rtol=1e-6)
    np.testing.assert_allclose(frame["b"], 39.0, rtol=1e-6)
    with Image.open(plot) as image:
        assert image.width >= 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.png", "x.csv"]


def test_predict_file_gives_marks_to_networks_that_take_them(write, tmp_path):
    files = replace(FILES, minutes=True, freq="h")
    source = write(_two(_days("h", "%Y-%m-%d %H:%M:%S")))
    network = _Last(3)
    network.takes_marks = True
    files.predict_file(network, source, tmp_path / "out.csv")
    times = pd.date_range("2020-01-01", periods=43, freq="h")
    added = calendar_features(times[36:40], True).sum() + calendar_features(times[40:], True).sum()
    frame = pd.read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(frame["b"], 39.0 + added, rtol=1e-5)
    assert frame["date"][0] == "2020-01-02 16:00:00"


def test_predict_file_refuses_what_does_not_fit(write, tmp_path):
    output = tmp_path / "out.csv"

    def refused(text, files=FILES, network=None):
        with pytest.raises(UserError) as told:
            files.predict_file(network or _Last(3), write(text), output)
        assert "--data" not in str(told.value).replace("train with `--data.gaps", "")
        assert not output.exists()
        return str(told.value)

    assert "missing b, which the model was trained on; it has date, a" in refused(
        _text(_days(), VALUES)
    )
    assert "3 rows are fewer than the 4" in refused(_two(_days()[:3]))
    assert "do not keep to the step 'h'" in refused(_two(_days()), replace(FILES, freq="h"))
    assert "rows are missing" in refused(_two(_without(_days(), 5)))

    class Broken(_Last):
        def forward(self, past, *marks):
            return super().forward(past) * torch.nan

    assert "not finite" in refused(_two(_days()), network=Broken(3))
    source = write(_two(_days()))
    with pytest.raises(UserError, match="is the input file"):
        FILES.predict_file(_Last(3), source, source)
    assert source.read_text() == _two(_days())


def test_predict_file_fills_gaps_as_in_training(write, tmp_path):
    files = replace(FILES, gaps="ffill")
    told = files.predict_file(_Last(3), write(_two(_without(_days(), 5))), tmp_path / "out.csv")
    assert "1 missing rows were filled by the value before" in told


def test_json_round_trip():
    assert ForecastFiles.from_json(json.loads(json.dumps(FILES.to_json()))) == FILES


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lookback": 0}, "lookback=0 must be a whole number above 0"),
        ({"horizon": "3"}, "horizon='3' must be"),
        ({"std": [0.0, 1.0]}, r"std=\[0.0, 1.0\] must be numbers above 0"),
        ({"mean": [None, 1.0]}, "mean="),
        ({"mean": [1.0]}, "differ in length"),
        ({"columns": ["a", "a"]}, "columns="),
        ({"freq": "fortnight"}, "freq='fortnight'"),
        ({"gaps": "fill"}, "gaps='fill' must be one of"),
        ({"minutes": 1}, "minutes=1"),
        ({"more": 1}, "'more' is unknown"),
    ],
)
def test_damaged_json_is_refused(change, told):
    with pytest.raises(UserError, match=told):
        ForecastFiles.from_json(FILES.to_json() | change)


def test_lacking_json_is_refused():
    content = FILES.to_json()
    del content["std"]
    with pytest.raises(UserError, match="'std' is missing"):
        ForecastFiles.from_json(content)
    with pytest.raises(UserError, match="must hold a mapping"):
        ForecastFiles.from_json([])


def test_show_tells_gaps_and_draws(write, tmp_path):
    path = write(_text(_days(), _with(VALUES, 5, "")))
    facts = show(path, tmp_path / "x.png")
    assert facts["rows"] == "40"
    assert facts["range"] == "2020-01-01 to 2020-02-09 (column 'date')"
    assert facts["frequency"] == "D"
    assert facts["missing"] == "1 of 40 values"
    assert facts["column a"].startswith("7 to 13, mean 10.16")
    assert (tmp_path / "x.png").is_file()


def test_co2_is_read():
    path = Path(statsmodels.__file__).parent / "datasets" / "co2" / "co2.csv"
    series = read_csv(path, gaps="interpolate")
    assert (series.values.shape, series.freq) == ((2284, 1), "W-SAT")
    assert series.time[0] == pd.Timestamp("1958-03-29")
    assert series.repairs == ("59 missing values were interpolated",)
    assert ":8: 59 missing values in co2 (59)" in _refused(path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "freq", "seconds"),
    [
        ("ETT-small/ETTh1.csv", (17420, 7), "h", 0.1),
        ("ETT-small/ETTm1.csv", (69680, 7), "15min", 0.4),
        ("exchange_rate/exchange_rate.csv", (7588, 8), "D", 0.1),
        ("illness/national_illness.csv", (966, 7), "W-TUE", 0.1),
    ],
)
def test_benchmark_files_are_read_fast(real_data, name, shape, freq, seconds):
    path = real_data / "time_series" / name
    spent = []
    for _ in range(3):
        begin = time.process_time()
        series = read_csv(path)
        spent.append(time.process_time() - begin)
    assert (series.values.shape, series.freq, series.repairs) == (shape, freq, ())
    assert min(spent) < seconds
