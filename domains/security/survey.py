"""``pleiad show`` of a table of flows: a drafted specification, the labels, what is suspicious."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure
from numpy.typing import NDArray

from core.errors import UserError
from core.openers import write_atomic
from core.split_columns import listed
from domains.security.draft import draft
from domains.security.flow_files import find_flow_files
from domains.security.preprocessing import LEVELS
from domains.security.raw_flows import RawFlows, benign_name, read_raw

LEAK = 0.99
"""The balanced accuracy from which on a single field is told to give the label away."""
_SHOWN = 20


def show(path: Path, picture: Path | None) -> dict[str, str]:
    """Describe a table of flows, of a folder its largest, and write its specification.

    That goes beside the picture; a specification that is there already is kept.

    Raises:
        UserError: if it is not a table of flows.
    """
    if path.is_dir():
        path = max(find_flow_files(str(path), "train"), key=lambda file: file.stat().st_size)
    specification, told = draft(path)
    label = specification.label
    raw = read_raw([(path,)], specification, also=(label,) if label else ())
    facts = {"flows": f"{len(raw):,}", "specification": told}
    attack = None
    if label:
        facts["label"] = f"column {label!r}: {_shares(raw, label)}"
        try:
            specification = replace(specification, benign=benign_name(raw))
            attack = raw.texts[label] != raw.names[label].index(str(specification.benign))
            facts["benign"] = f"{specification.benign!r}, {1 - attack.mean():.2%} of the flows"
        except UserError as error:
            facts["benign"] = str(error)
    else:
        facts["label"] = "none was found; name it as `label: COLUMN`"
    facts |= _fields(raw)
    alone = {} if attack is None or attack.all() or not attack.any() else by_itself(raw, attack)
    if leaks := [f"{name} ({score:.3f})" for name, score in alone.items() if score >= LEAK]:
        facts["gives the label away"] = f"{listed(leaks)}; drop what is no property of the traffic"
    text = yaml.safe_dump(
        specification.to_json(), sort_keys=False, default_flow_style=None, width=100
    )
    facts["draft"] = text.rstrip()
    if picture is not None:
        written = picture.with_suffix(".yaml")
        if written.exists():
            facts["written"] = f"nothing: {written} is there already"
        else:
            write_atomic(written, text)
            facts["written"] = str(written)
        facts["next"] = (
            f"pleiad fit security/detect --data.train={path} --data.specification={written}"
        )
        _draw(picture, raw, label, alone)
    return facts


def by_itself(raw: RawFlows, attack: NDArray[np.bool_]) -> dict[str, float]:
    """Say how well each field alone tells attacks (R,) from benign flows, the best first.

    It is the balanced accuracy of the best rule on the field's levels, of which the most frequent
    count, or on 32 ranges of its numbers.
    """
    scores = {}
    for name in raw.specification.categorical:
        codes = raw.texts[name]
        counts = np.bincount(codes)
        order = np.argsort(-counts, kind="stable")
        rank = np.empty(len(counts), np.int64)
        rank[order] = np.arange(len(counts))
        scores[name] = _balanced(np.minimum(rank, LEVELS)[codes], attack)
    for place, name in enumerate(raw.specification.numeric):
        values = raw.numeric[:, place]
        finite = values[np.isfinite(values)]
        if not len(finite):
            continue
        edges = np.unique(np.quantile(finite, np.linspace(0, 1, LEVELS + 1)))
        scores[name] = _balanced(np.searchsorted(edges, values), attack)  # what is missing is last
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def _balanced(bins: NDArray[np.int64], attack: NDArray[np.bool_]) -> float:
    most = int(bins.max()) + 1
    shares = [np.bincount(bins[own], minlength=most) / own.sum() for own in (attack, ~attack)]
    return float(np.maximum(*shares).sum() / 2)


def _shares(raw: RawFlows, label: str) -> str:
    counts = np.bincount(raw.texts[label], minlength=len(raw.names[label]))
    order = np.argsort(-counts, kind="stable")
    return listed(f"{raw.names[label][n]!r} {counts[n] / len(raw):.2%}" for n in order)


def _fields(raw: RawFlows) -> dict[str, str]:
    """Tell of the fields and of what in them is odd."""
    specification = raw.specification
    facts = {
        "numeric": f"{len(specification.numeric)}: {listed(specification.numeric)}",
        "categorical": f"{len(specification.categorical)}: {listed(specification.categorical)}",
        "dropped": listed(specification.drop) or "nothing",
    }
    hosts = {key: getattr(specification, key) for key in ("source", "destination", "time")}
    if named := [f"{key} {name!r}" for key, name in hosts.items() if name]:
        facts["hosts and time"] = ", ".join(named)
    found: dict[str, list[str]] = {"constant": [], "missing": [], "infinite": [], "negative": []}
    for place, name in enumerate(specification.numeric):
        values = raw.numeric[:, place]
        missing, infinite = np.isnan(values), np.isinf(values)
        if (values == values[0]).all() or missing.all():
            found["constant"].append(name)
        odd = {"missing": missing, "infinite": infinite, "negative": values < 0}
        for what, where in odd.items():
            if where.any():
                found[what].append(f"{name} {where.mean():.2%}")
    found["constant"] += [n for n in specification.categorical if len(raw.names[n]) == 1]
    return facts | {what: listed(names) for what, names in found.items() if names}


def _draw(path: Path, raw: RawFlows, label: str | None, alone: dict[str, float]) -> None:
    """Draw the flows of each label value, and how well each field alone tells attacks."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    if label:
        counts = np.bincount(raw.texts[label])
        order = np.argsort(-counts, kind="stable")[:_SHOWN][::-1]
        left.barh([raw.names[label][n] or "(none)" for n in order], counts[order])
        left.set_xscale("log")
        left.set_title(f"flows by {label}", loc="left", fontsize=10)
    best = list(alone.items())[:_SHOWN][::-1]
    right.barh([name for name, _ in best], [score for _, score in best])
    right.set_xlim(0.5, 1)
    right.axvline(LEAK, color="black", linewidth=0.8, linestyle=":")
    right.set_title("balanced accuracy of each field by itself", loc="left", fontsize=10)
    figure.savefig(path, dpi=110)
