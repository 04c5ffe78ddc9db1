"""What early exits of a run are worth: quality against mean depth, as a picture and a table."""

from pathlib import Path

import pandas as pd

from core.early_exit.transform import EarlyExits


def draw(exits: EarlyExits, folder: Path) -> list[Path]:
    """Draw the curve of a test into ``exit_curve.png``, and write it to ``exit_curve.csv``.

    Of classes the quality is the share of right answers; of values the mean squared error stands.
    """
    import matplotlib.figure

    frame = pd.DataFrame(exits.curve)
    what = "squared_error" if exits.learning.values else "right"
    frame[what] = frame["loss"] if exits.learning.values else 1 - frame["loss"]
    table = folder / "exit_curve.csv"
    frame.drop(columns="loss").to_csv(table, index=False)
    figure = matplotlib.figure.Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    rules = {str(rule): part for rule, part in frame.groupby("rule")}
    drawn = {
        "threshold": ("each sample leaves when it is sure", "-", "."),
        "depth": ("all leave after the same layer", "--", "o"),
    }
    for rule, (label, line, marker) in drawn.items():
        if rule in rules:
            part = rules[rule].sort_values("mean_exit")
            axes.plot(part["mean_exit"], part[what], line, marker=marker, label=label)
    met = exits.meter.report().get("mean_exit")
    if met is not None:
        axes.axvline(met, color="grey", linewidth=1, label=f"this run: {met:.2f} layers")
    axes.set_xlabel(f"layers run, mean over the test, of {len(exits.control.layers)}")
    axes.set_ylabel("share of right answers" if what == "right" else "mean squared error")
    axes.legend(fontsize=8)
    picture = folder / "exit_curve.png"
    figure.savefig(picture, dpi=120)
    return [picture, table]
