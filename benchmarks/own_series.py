"""A user's own series, from file to answer: many, of unequal lengths, with gaps and covariates.

``python benchmarks/own_series.py [--series 240] [--output FOLDER]`` builds a long CSV of real
series with a planted effect of two covariates, trains on it with and without them, forecasts with a
plan of the covariates, and judges both the forecasts and their intervals on steps that no model
has seen, beside repeating the last day and, where it is installed, ``neuralforecast``.

The series are pieces of ETTh1's seven channels (hours) and, one in five, of the exchange rates
(their days set as hours); a promotion raises a value by 0.8 and a price lowers it by 0.5 standard
deviations of its series.
"""

import argparse
import importlib.util
import itertools
import time
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


def ours(name: str, folder: Path, epochs: int, keys: list[str], plan: str | None) -> pd.DataFrame:
    """Train as ``pleiad fit`` does and forecast as ``pleiad predict`` does."""
    source = folder / "past.csv"
    common = [f"--data.train={source}", f"--data.horizon={HORIZON}", "--data.target=y"]
    run.fit(
        "time_series/forecast",
        [*common, f"--trainer.max_epochs={epochs}", "--trainer.accelerator=cpu", *keys],
        run.Options(run=folder / name),
    )
    model = from_pretrained(folder / name)
    output = folder / name / "forecast.csv"
    options = {"levels": "80,95"} | ({"future": plan} if plan else {})
    model.preprocessing.predict_file(model.network, source, output, **options)
    return pd.read_csv(output)


def theirs(past: pd.DataFrame, ahead: pd.DataFrame, steps: int) -> dict[str, pd.DataFrame]:
    """Train neuralforecast's PatchTST, and its NHITS with the covariates, as many steps."""
    from neuralforecast import NeuralForecast, models

    regular = (
        past.set_index("ds")
        .groupby("unique_id")
        .apply(lambda frame: frame.drop(columns="unique_id", errors="ignore").asfreq("h").ffill())
    )
    regular = regular.reset_index()
    options = {"max_steps": steps, "batch_size": 32, "windows_batch_size": 32, "random_seed": 1}
    options["scaler_type"] = "standard"
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    covariates = ["promotion", "price"]
    found = {}
    for name, model, exogenous in (
        ("neuralforecast PatchTST", models.PatchTST, []),
        ("neuralforecast NHITS, covariates", models.NHITS, covariates),
    ):
        own = {"futr_exog_list": exogenous} if exogenous else {}
        suite = NeuralForecast([model(HORIZON, 96, **options, **own, **quiet)], freq="h")
        began = time.perf_counter()
        suite.fit(regular[["unique_id", "ds", "y", *exogenous]])
        plan = ahead[["unique_id", "ds", *exogenous]] if exogenous else None
        found[name] = suite.predict(futr_df=plan).assign(seconds=time.perf_counter() - began)
    return found


def main() -> None:
    """Build, train with and without covariates, forecast, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--series", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/own_series"))
    given = parser.parse_args()
    folder = next(f for n in itertools.count() if not (f := given.output / str(n)).exists())
    folder.mkdir(parents=True)
    past, ahead = build(given.series)
    past.to_csv(folder / "past.csv", index=False)
    ahead.drop(columns="y").to_csv(folder / "plan.csv", index=False)
    hourly = past.set_index("ds").groupby("unique_id").y.apply(lambda y: y.asfreq("h"))
    naive = hourly.groupby("unique_id").apply(lambda y: y.diff(24).abs().mean())
    last = hourly.groupby("unique_id").ffill().groupby("unique_id").tail(24).reset_index()
    last["ds"] += pd.Timedelta(hours=24)
    rows = {"repeat the last day": judge(last.rename(columns={"y": "day"}), ahead, naive)}
    plan = str(folder / "plan.csv")
    covariates = ["--data.known_future=promotion,price"]
    for name, keys, future in (("plain", [], None), ("covariates", covariates, plan)):
        forecast = ours(name, folder, given.epochs, keys, future)
        forecast["ds"] = pd.to_datetime(forecast.ds)
        seconds = results(folder / name)["seconds"]["fit"]
        rows[f"PatchTST, {name}"] = judge(forecast, ahead, naive) | {"fit s": seconds}
    if importlib.util.find_spec("neuralforecast"):
        steps = 1000 * given.epochs
        for name, forecast in theirs(past, ahead, steps).items():
            seconds = float(forecast.pop("seconds").iloc[0])
            rows[name] = judge(forecast.reset_index(drop=True), ahead, naive) | {"fit s": seconds}
    else:
        print("neuralforecast skipped: pip install -e '.[peers]', in an environment of its own")
    names = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table("model", *names)
    for name, row in rows.items():
        table.add_row(name, *(f"{row[key]:.3f}" if key in row else "" for key in names))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
