"""Scores of separated speech, one a mixture, and their means over a split."""

from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.audio import signal_distortion_ratio

from domains.speech.si_sdr import best_order, ordered, pairs

UNMIXED = 60.0
"""A mixture that equals its reference to so many dB cannot be improved."""


class Average(Metric):
    """Mean of one of the scores over all mixtures that have it; NaN where none has.

    Args:
        name: of the score.
    """

    full_state_update = False

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        # states of other names: a collection would share equal ones
        self.add_state(f"{name}_sum", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state(f"{name}_count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, scores: Mapping[str, Tensor]) -> None:
        """Take the scores (B,) of a batch by their names."""
        values = scores[self.name]
        known = values.isfinite()
        self._add("sum", values.where(known, 0).sum())
        self._add("count", known.sum())

    def compute(self) -> Tensor:
        """Give the mean."""
        total: Tensor = getattr(self, f"{self.name}_sum") / getattr(self, f"{self.name}_count")
        return total

    def _add(self, state: str, value: Tensor) -> None:
        name = f"{self.name}_{state}"
        setattr(self, name, getattr(self, name) + value)


def score_names() -> list[str]:
    """Name the scores of a test: PESQ and STOI where their packages are installed."""
    more = [name for name, package in (("pesq", "pesq"), ("stoi", "pystoi")) if find_spec(package)]
    return ["si_sdr_i", "si_sdr", "sdr_i", *more]


def improvement(
    estimates: Tensor, references: Tensor, mixture: Tensor, lengths: Tensor
) -> dict[str, Tensor]:
    """Judge estimates (B, C, L) in the best order: ``si_sdr``, ``si_sdr_i``, ``by_talker`` (B, C).

    Means are over the references that are not silent; NaN where all are. The improvement over the
    mixture is NaN too where the mixture is a reference itself, as of a single talker.
    """
    found = pairs(estimates, references, mixture, lengths)
    before = pairs(mixture[:, None].expand_as(references), references, mixture, lengths)
    after = ordered(found.scores, best_order(found.scores))
    start = before.scores[..., 0]
    after, start = (part.masked_fill(found.silent, torch.nan) for part in (after, start))
    gain = (after - start).masked_fill(start > UNMIXED, torch.nan)
    return {"si_sdr": after.nanmean(1), "si_sdr_i": gain.nanmean(1), "by_talker": after}


def thorough(
    estimates: Tensor, references: Tensor, mixture: Tensor, lengths: Tensor, rate: int
) -> dict[str, Tensor]:
    """Judge estimates (B, C, L), in the order of their references, by slower measures too.

    ``sdr`` and its improvement ``sdr_i`` are the BSS-eval SDR with its 512-tap filter (Vincent et
    al., IEEE TASLP 2006), in float64; ``pesq`` (ITU-T P.862, wide band at 16 kHz) and ``stoi`` are
    there where :func:`score_names` has them. Silent references are left out, as in
    :func:`improvement`.
    """
    scores = improvement(estimates, references, mixture, lengths)
    names = ["sdr", *(name for name in score_names() if name not in scores)]
    scores |= {name: torch.full_like(scores["si_sdr"], torch.nan) for name in names}
    mixed = scores["si_sdr_i"].isfinite()
    for at, length in enumerate(lengths.tolist()):
        there = scores["by_talker"][at].isfinite()
        if not there.any():
            continue
        found, truth = (part[at, there, :length].double() for part in (estimates, references))
        start = mixture[at, :length].double().expand_as(truth)
        after = signal_distortion_ratio(found, truth)
        scores["sdr"][at] = after.mean()
        if mixed[at]:
            scores["sdr_i"][at] = (after - signal_distortion_ratio(start, truth)).mean()
        if "pesq" in scores:
            scores["pesq"][at] = _pesq(found, truth, rate)
        if "stoi" in scores:
            scores["stoi"][at] = _stoi(found, truth, rate)
    return scores


def _pesq(found: Tensor, truth: Tensor, rate: int) -> Tensor:
    from pesq import NoUtterancesError
    from torchmetrics.functional.audio.pesq import perceptual_evaluation_speech_quality

    mode = "wb" if rate >= 16000 else "nb"
    try:
        score: Tensor = perceptual_evaluation_speech_quality(found, truth, rate, mode).mean()
    except NoUtterancesError:  # too short or too quiet for the standard
        return torch.tensor(torch.nan)
    return score


def _stoi(found: Tensor, truth: Tensor, rate: int) -> Tensor:
    from torchmetrics.functional.audio.stoi import short_time_objective_intelligibility

    score: Tensor = short_time_objective_intelligibility(found, truth, rate).mean()
    return score
