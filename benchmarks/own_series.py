"""A user's own series, from file to answer: many, of unequal lengths, with gaps and covariates.

``python benchmarks/own_series.py [--series 240] [--output FOLDER]`` builds a long CSV of real
series with a planted effect of two covariates, trains on it with and without them, forecasts with a
plan of the covariates, and judges both the forecasts and their intervals on steps that no model
has seen, beside repeating the last season.

The series are pieces of ETTh1's seven channels (hours) and, one in five, of the exchange rates
(their days set as hours); a promotion raises a value by 0.8 and a price lowers it by 0.5 standard
deviations of its series.
"""

import argparse
import contextlib
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

import data
from core.pretrained import from_pretrained
from pleiad import run
from pleiad.runs import results

HORIZON = 24


def build(series: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make the series, and the covariates and true values of the steps after each one's end.

    Returns:
        Columns ``unique_id, ds, y, promotion, price`` of the past, in no order and with gaps; and
        of the steps ahead.
    """
    draw = np.random.default_rng(seed)
    sources = [pd.read_csv(data.locate(name)).iloc[:, 1:] for name in ("etth1", "exchange_rate")]
    hours = pd.date_range("2024-01-01", periods=1000, freq="h")
    past, ahead = [], []
    for number in range(series):
        values = sources[number % 5 == 4].to_numpy()
        length = int(draw.integers(240, 900)) + HORIZON
        start = int(draw.integers(0, len(values) - length))
        piece = values[start : start + length, draw.integers(values.shape[1])]
        promotion = np.repeat(draw.random(-(-length // 6)) < 0.2, 6)[:length].astype(int)
        price = np.convolve(draw.normal(size=length + 11), np.ones(12) / 3.5, "valid")
        piece = piece + piece.std() * (0.8 * promotion - 0.5 * price)
        frame = pd.DataFrame({"unique_id": f"s{number:05d}", "ds": hours[:length], "y": piece})
        frame["promotion"], frame["price"] = promotion, price.round(4)
        ahead.append(frame[-HORIZON:])
        frame = frame[:-HORIZON]
        hole = int(draw.integers(0, len(frame) - 12))
        kept = draw.random(len(frame)) > 0.03
        kept[hole : hole + int(draw.integers(1, 12))] = False
        kept[-1] = True
        past.append(frame[kept])
    shuffled = pd.concat(past).sample(frac=1, random_state=seed)
    return shuffled, pd.concat(ahead)


def judge(forecast: pd.DataFrame, truth: pd.DataFrame, naive: pd.Series) -> dict[str, float]:
    """Give MASE and the coverage of each interval over all series."""
    both = truth.merge(forecast, on=["unique_id", "ds"], validate="one_to_one")
    assert len(both) == len(truth)
    model = next(name for name in forecast if name not in ("unique_id", "ds"))
    error = (both[model] - both.y).abs() / both.unique_id.map(naive)
    found = {"MASE": float(error.groupby(both.unique_id).mean().mean())}
    for level in (80, 95):
        if f"{model}-lo-{level}" in both:
            inside = both.y.between(both[f"{model}-lo-{level}"], both[f"{model}-hi-{level}"])
            found[f"coverage {level} %"] = float(inside.mean())
    return found


def main() -> None:
    """Build, train with and without covariates, forecast, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--series", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--only-build", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/own_series"))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    past, ahead = build(given.series)
    paths = {name: given.output / f"{name}.csv" for name in ("past", "plan", "truth")}
    past.to_csv(paths["past"], index=False)
    ahead.drop(columns="y").to_csv(paths["plan"], index=False)
    ahead.to_csv(paths["truth"], index=False)
    if given.only_build:
        return
    ahead = ahead.assign(ds=ahead.ds.astype(str))
    ordered = past.sort_values(["unique_id", "ds"]).set_index("ds")
    seasons = ordered.groupby("unique_id").y.apply(
        lambda y: (
            y.diff(
                24,
            )
            .abs()
            .mean()
        )
    )
    hourly = ordered.groupby("unique_id").y.apply(lambda y: y.asfreq("h").ffill())
    last = hourly.groupby("unique_id").tail(24).reset_index()
    last["ds"] = (last.ds + pd.Timedelta(hours=24)).astype(str)
    rows = {"repeat the last day": judge(last.rename(columns={"y": "day"}), ahead, seasons)}
    for name, keys in {
        "without covariates": ["--data.target=y"],
        "with covariates": ["--data.target=y", "--data.known_future=promotion,price"],
    }.items():
        folder = given.output / name.replace(" ", "_")
        common = [f"--data.train={paths['past']}", f"--data.horizon={HORIZON}"]
        common += [f"--trainer.max_epochs={given.epochs}", *keys]
        with contextlib.suppress(FileNotFoundError):
            pass
        run.fit("time_series/forecast", common, run.Options(run=folder))
        model = from_pretrained(folder)
        plan = {"future": str(paths["plan"])} if "with c" in name else {}
        output = folder / "forecast.csv"
        model.preprocessing.predict_file(
            model.network, paths["past"], output, levels="80,95", **plan
        )
        found = results(folder)
        rows[name] = judge(pd.read_csv(output), ahead, seasons)
        rows[name] |= {f"test {k}": found["metrics"][f"test/{k}"] for k in ("mase", "coverage_80")}
        rows[name]["fit s"] = found["seconds"]["fit"]
    table = Table("model", *(names := list(rows["with covariates"])))
    for name, row in rows.items():
        table.add_row(name, *(f"{row[k]:.3f}" if k in row else "" for k in names))
    Console().print(table)


if __name__ == "__main__":
    main()
