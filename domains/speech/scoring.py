"""Score anyone's separated recordings against references, file by file."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.errors import UserError
from core.progress import bar
from domains.speech import audio
from domains.speech.metrics import thorough
from domains.speech.si_sdr import best_order, pairs

_TALKER = re.compile(r"(?:s|spk|speaker|source)_?(\d)(_est|hat)?", re.IGNORECASE)
_ENDING = re.compile(r"(.+)[_-]" + _TALKER.pattern, re.IGNORECASE)
_MIXTURE = re.compile(r"(.+)[_-]mix", re.IGNORECASE)


def score(
    estimates: Path, references: Path, mixtures: Path | None = None, output: Path | None = None
) -> str:
    """Score separated recordings: SI-SDR, SDR, and PESQ and STOI where their packages are there.

    The talkers of a mixture are found as ``s1/NAME.wav``, as ``NAME/s1.wav`` (what ``pleiad
    predict`` writes), as ``NAME_s1.wav``, or as ``s1.wav`` of one mixture alone; estimates in the
    folder of the references end in ``hat`` or ``_est``. Their order does not matter.

    Args:
        estimates: the folder of the separated recordings.
        references: the folder of the true ones.
        mixtures: the folder of the mixtures, ``NAME.wav`` or ``NAME_mix.wav``; improvements over
            them are told too.
        output: a CSV with a row a mixture; ``scores.csv`` beside the estimates if not given.

    Returns:
        The means, with their 95 % confidence intervals.

    Raises:
        UserError: if files are missing, do not belong together, or cannot be read.
    """
    found, true = _by_mixture(estimates, True), _by_mixture(references, False)
    mixed = None if mixtures is None else _mixtures(mixtures)
    if missing := sorted(set(found) ^ set(true)):
        side = "references" if missing[0] in found else "estimates"
        folder = references if missing[0] in found else estimates
        raise UserError(
            f"{folder}: {len(missing):,} mixtures have no {side}, such as {missing[0]}; each needs"
            " both"
        )
    rows = []
    if mixed is not None and (missing := sorted(set(found) - set(mixed))):
        raise UserError(f"{mixtures}: holds no mixture of the name {missing[0] or estimates.name}")
    with bar("score", len(found)) as advance:
        for name in sorted(found):
            mixture = None if mixed is None else mixed[name]
            rows.append({"name": name, **_scores(found[name], true[name], mixture)})
            advance(1)
    table = pd.DataFrame(rows)
    path = output or estimates / "scores.csv"
    table.to_csv(path, index=False, float_format="%.4f")
    return "\n".join([*_means(table), f"{len(rows):,} mixtures  {path}"])


def _scores(
    estimates: dict[int, Path], references: dict[int, Path], mixture: Path | None
) -> dict[str, float | str]:
    """Score one mixture, in the best order of its estimates."""
    if len(estimates) != len(references):
        raise UserError(
            f"{estimates[min(estimates)]}: one of {len(estimates)} estimates, but there are"
            f" {len(references)} references"
        )
    paths = [references[n] for n in sorted(references)] + [estimates[n] for n in sorted(estimates)]
    paths += [] if mixture is None else [mixture]
    read = [audio.read(path) for path in paths]
    for path, each in zip(paths, read, strict=True):
        if (each.rate, len(each.samples)) != (read[0].rate, len(read[0].samples)):
            raise UserError(
                f"{path}: {len(each.samples):,} samples at {each.rate:,} Hz, but {paths[0]} has"
                f" {len(read[0].samples):,} at {read[0].rate:,} Hz"
            )
    samples = torch.stack([each.samples for each in read])
    talkers = len(references)
    true, found = samples[None, :talkers], samples[None, talkers : 2 * talkers]
    whole = true.sum(1) if mixture is None else samples[None, -1]
    length = torch.tensor([samples.shape[1]])
    order = best_order(pairs(found, true, whole, length).scores)[0]
    scores = thorough(found[:, order], true, whole, length, read[0].rate)
    by_talker: Tensor = scores.pop("by_talker")[0]
    return {
        **{
            name: float(value)
            for name, value in scores.items()
            if mixture is not None or not name.endswith("_i")
        },
        **{f"si_sdr_s{n}": value for n, value in enumerate(by_talker.tolist(), 1)},
        "order": " ".join(str(sorted(estimates)[number]) for number in order.tolist()),
    }


def _means(table: pd.DataFrame) -> Iterator[str]:
    """Write the mean of each score and its 95 % interval, by the normal distribution."""
    for name in table.columns:
        if name in ("name", "order") or re.fullmatch(r"si_sdr_s\d", name):
            continue
        values = table[name].to_numpy(dtype=float)
        values = values[np.isfinite(values)]
        if not len(values):
            yield f"{name:<10} no mixture has it"
            continue
        spread = 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
        left = f"  ({len(values):,} mixtures)" if len(values) < len(table) else ""
        yield f"{name:<10} {values.mean():8.3f}  +- {spread:.3f}{left}"


def _by_mixture(folder: Path, estimates: bool) -> dict[str, dict[int, Path]]:
    """Find the talkers of every mixture, by the name of the mixture."""
    found: dict[str, dict[int, dict[bool, Path]]] = {}
    for path in _recordings(folder):
        inside = path.parent != folder
        if ending := _ENDING.fullmatch(path.stem):
            name, number, marked = ending.groups()
        elif inside and (talker := _TALKER.fullmatch(path.parent.name)):
            name, (number, marked) = path.stem, talker.groups()
        elif talker := _TALKER.fullmatch(path.stem):
            name, (number, marked) = path.parent.name if inside else "", talker.groups()
        else:
            continue
        found.setdefault(name, {}).setdefault(int(number), {})[bool(marked)] = path
    if not found:
        raise UserError(
            f"{folder}: holds no recordings of talkers; name them s1/NAME.wav, NAME/s1.wav or"
            " NAME_s1.wav"
        )
    return {
        name: {number: of.get(estimates, next(iter(of.values()))) for number, of in talkers.items()}
        for name, talkers in found.items()
    }


def _mixtures(folder: Path) -> dict[str, Path]:
    """Find mixtures by their names; of one alone the name does not matter."""
    paths = [path for path in _recordings(folder) if path.parent == folder]
    named = {}
    for path in paths:
        ending = _MIXTURE.fullmatch(path.stem)
        named[ending[1] if ending else path.stem] = path
    return {**named, "": paths[0]} if len(paths) == 1 else named


def _recordings(folder: Path) -> list[Path]:
    """List the recordings of a folder and of its folders."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    return sorted(p for p in paths if p.suffix.lower() in audio.SUFFIXES and p.is_file())
