"""Intervals around forecasts by split conformal prediction.

Vovk et al., Algorithmic Learning in a Random World, 2005; Lei et al., Distribution-Free Predictive
Inference for Regression, JASA 2018. For each step ahead, the width is the quantile of the absolute
errors on validation windows, which training has not seen. The coverage holds as far as errors later
are like those of the validation part; it is measured on the test part.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.data import Subset

from core.task import Task
from domains.time_series.data import WindowData

LEVELS = range(50, 100)
MOST_WINDOWS = 4000
MOST_NUMBERS = 1000
"""Steps times channels above which the channels share their widths."""


@torch.no_grad()
def half_widths(task: Task, data: WindowData) -> dict[int, Tensor]:
    """Measure half the width of the intervals of each level, in percent.

    Returns:
        From a level to (H, C), in standardised units; the channels share theirs where there are
        many.
    """
    windows = data.val_set
    chosen = range(0, len(windows), max(1, -(-len(windows) // MOST_WINDOWS)))
    errors = []
    for batch in data.every_item(Subset(windows, chosen)):  # type: ignore[arg-type]
        moved = task.transfer_batch_to_device(batch, task.device, 0)
        error = (task(moved) - moved.future).float().abs().cpu()
        errors.append(error.masked_fill(~moved.observed.cpu(), torch.nan))
    scores = torch.cat(errors)  # (N, H, C)
    _, horizon, channels = scores.shape
    if horizon * channels > MOST_NUMBERS:
        scores = scores.transpose(0, 1).reshape(horizon, -1, 1).transpose(0, 1)  # (N C, H, 1)
    ordered = scores.sort(0).values  # NaN last
    counts = ordered.isfinite().sum(0, keepdim=True)  # (1, H, C)
    found = {}
    for level in LEVELS:
        rank = ((counts + 1) * level + 99) // 100  # rounded up
        rank = torch.minimum(rank, counts.clamp(min=1))
        found[level] = ordered.gather(0, rank - 1)[0].expand(horizon, channels)
    return found


def plain(widths: Mapping[int, Tensor]) -> dict[str, list[list[float]]]:
    """Give plain numbers, of four digits, one list a step."""
    digits = {
        str(level): [[_rounded(number) for number in row] for row in width.tolist()]
        for level, width in widths.items()
    }
    return {
        level: [row[:1] if len(set(row)) == 1 else row for row in rows]
        for level, rows in digits.items()
    }


def _rounded(number: float) -> float:
    return float(f"{number:.4g}") if math.isfinite(number) else 0.0
