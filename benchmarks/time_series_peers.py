"""iTransformer here and in neuralforecast: an epoch on the windows of ETTh1, seconds and errors.

``python benchmarks/time_series_peers.py [--output FOLDER]`` trains both with two seeds, in turn,
and judges both on every test window; ours also takes the 4 calendar marks as tokens beside the 7
channels. The library comes with ``pip install -e '.[peers]'``, best in an environment of its own;
without it nothing is measured.
"""

import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import measure
import pandas as pd
import torch
from measure import Row
from torch import Tensor

from domains.time_series.data import ForecastingData
from domains.time_series.windows import Window
from pleiad import building, run
from pleiad.experiments import resolve

Fitted = tuple[Callable[[Window], Tensor], Iterable[Window]]  # a forecaster, and the test windows


def ours(seed: int) -> Fitted:
    """Train iTransformer an epoch as ``pleiad fit`` does."""
    keys = [f"--seed_everything={seed}", "--trainer.max_epochs=1", "--trainer.callbacks=[]"]
    keys += ["--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
    built = building.build(resolve("time_series/itransformer_etth1", keys))
    with tempfile.TemporaryDirectory() as folder:
        run.make_trainer(built, Path(folder), []).fit(built.task, built.data)
    return built.task.eval(), built.data.test_dataloader()


def theirs(seed: int) -> Fitted:
    """Train neuralforecast's iTransformer in the same size, at the same rate, as many steps."""
    from neuralforecast import NeuralForecast, models
    from neuralforecast.losses.pytorch import MSE

    data = ForecastingData("etth1")
    data.setup()
    frame = pd.DataFrame(data.scaled[: data.ends[0]]).rename_axis("ds").reset_index()
    frame = frame.melt("ds", var_name="unique_id", value_name="y")
    steps = len(data.train_set) // 32
    options = {"hidden_size": 256, "d_ff": 256, "windows_batch_size": 32, "max_steps": steps}
    options |= {"learning_rate": 1e-4, "loss": MSE(), "val_check_steps": steps, "logger": False}
    options |= {"random_seed": seed, "accelerator": "cpu", "enable_progress_bar": False}
    options |= {"enable_model_summary": False}
    suite = NeuralForecast(
        [models.iTransformer(96, 96, frame.unique_id.nunique(), **options)], freq=1
    )
    suite.fit(frame)
    network = suite.models[0].eval()
    return lambda window: network({"insample_y": window.past}), data.test_dataloader()


@torch.no_grad()
def score(forecast: Callable[[Window], Tensor], windows: Iterable[Window]) -> float:
    """Give the MSE over every window, in standardised units."""
    return float(torch.cat([(forecast(w) - w.future).square() for w in windows]).mean())


def itransformer() -> list[Row]:
    """Train both with two seeds, and judge both on every test window."""
    if importlib.util.find_spec("neuralforecast") is None:
        print("peers skipped: pip install -e '.[peers]', in an environment of its own")
        return []
    fitted = {fit: [] for fit in (ours, theirs)}
    sides = {fit.__name__: lambda f=fit: fitted[f].append(f(len(fitted[f]))) for fit in fitted}
    seconds = measure.alternate(sides, 2)
    errors = [statistics.fmean(score(*fit) for fit in fits) for fits in fitted.values()]
    note = f"test MSE {errors[0]:.3f} and {errors[1]:.3f}"
    name = "iTransformer ETTh1, an epoch"
    return [Row(name, "neuralforecast", (seconds["ours"], seconds["theirs"]), None, note)]


if __name__ == "__main__":
    measure.main({"itransformer": itransformer}, "time_series_peers.png")
