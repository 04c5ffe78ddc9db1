"""The scores of one registered pair, in files and in words."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from domains.medical.fields import Field
from domains.medical.judging import IMAGE_SCORES, LABEL_SCORES, judge, judge_labels
from domains.medical.pair_on_grid import PairOnGrid
from domains.medical.volumes import Volume

_SAID = ("ncc_before", "ncc", "dice_before", "dice", "hd95", "folding")


def judged(pair: PairOnGrid, field: Field) -> dict[str, float]:
    """Judge images and displacements on the grid of the network; before is without its field."""
    scores = judge(
        pair.batch(), pair.padded_flow(field), torch.zeros(0), (), names=set(IMAGE_SCORES)
    )
    return {name: float(value[0]) for name, value in scores.items()}


def judged_labels(found: tuple[NDArray[Any], NDArray[Any]], truth: Volume) -> dict[str, float]:
    """Judge labels on the grid of fixed, after and before the network's field."""
    after, before, there = (torch.from_numpy(part.astype("int64")) for part in (*found, truth.data))
    values = np.union1d(found[0], truth.data)
    labels = torch.from_numpy(values[values != 0].astype("int64"))
    words = [str(value) for value in labels.tolist()]
    spacing = torch.tensor(truth.spacing)
    scores = judge_labels(
        [after, before], there, labels, words, names=set(LABEL_SCORES), spacing=spacing
    )
    return {name: float(value) for name, value in scores.items()}


def write_scores(folder: Path, scores: Mapping[str, float]) -> None:
    """Write ``scores.json`` and ``scores.csv``, one row a score; what does not exist is empty."""
    known = {name: value if math.isfinite(value) else None for name, value in scores.items()}
    (folder / "scores.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    with (folder / "scores.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("score", "value"))
        table.writerows((name, "" if value is None else value) for name, value in known.items())


def in_words(scores: Mapping[str, float]) -> str:
    """Name the main scores."""
    return ", ".join(f"{name} {scores[name]:.3f}" for name in _SAID if name in scores)
